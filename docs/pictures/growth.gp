# A server's growth with its sessions: the table that `python -m tests.bench.crowd FILE.dat` writes.
set terminal svg size 990,260 font "sans-serif,11" background "white"
set multiplot layout 1,3
set style data linespoints
set xlabel "sessions"
set xrange [0:*]
set xtics 500
set yrange [0:*]
set grid ytics
set key off
set title "memory of the server (MB)"
plot data using 1:2 linewidth 2 pointtype 7
set title "CPU at rest (% of a core)"
plot data using 1:3 linewidth 2 pointtype 7
set title "CPU of one more handshake (ms)"
plot data using 1:($1 > 0 ? $4 : NaN) linewidth 2 pointtype 7
unset multiplot
