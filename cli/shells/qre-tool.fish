# Completion of qre-tool for fish: qre-tool itself says what may come next (cli/completion.py).

function __qre_tool_offers
    set -l before (commandline -opc)
    set -l last (commandline -ct)
    set -l program $before[1]
    set -e before[1]
    for line in ($program __complete $before "$last" 2>/dev/null)
        if test "$line" = :files
            set -l value (string replace -r '^[^=]*=' '' -- $last)
            set -l prefix (string sub -l (math (string length -- $last) - (string length -- $value)) -- $last)
            for path in (__fish_complete_path $value)
                echo $prefix$path
            end
        else
            echo $line
        end
    end
end

complete -c qre-tool -f -k -a '(__qre_tool_offers)'
