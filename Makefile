# ./run TARGET   make, on a machine that may not have it yet
# make setup  what running from this tree takes; every other target brings what it needs itself. make setup-dev: what
#             tests and checks take, too
# make demo   the whole tunnel on this machine, in network namespaces
# make test   the rings unit, host and vm, with coverage; each alone: make test-unit, test-host,
#             test-vm (which runs the long ones, too, on every kernel and on the newest of Debian's unstable archive)
# make test-kasan  the ring vm, with a long storm, in a kernel that is built to watch the module; takes hours
# make test-container  the ring container: the systemd unit, under the systemd of two containers
# make test-packages  the Debian packages, built twice and installed, upgraded and purged in two containers, and
#             upgraded in an emulated machine with qre.ko, and in podman's images; twenty minutes
# make mutants  breaks the program in one place for each clause of docs/conformance.md and runs the tests of that row,
#             which must fail; about an hour, as root. QRE_MUTANTS=vm: the ring vm, too, some minutes for each
# make test-cycles  200 starts and ends of a client, 50 of a server, every fourth cut off while it starts; half an hour
# make test-floods  floods of hellos for a minute each, with ten clients that come in meanwhile; five minutes
# make test-clients  fifty real clients of one server at once; ten minutes, and some gigabytes of memory
# make fuzz   peers that have the keys, against both ends and the data plane: a million inputs, half an hour.
#             QRE_FUZZ_INPUTS and QRE_FUZZ_SEED: another number, another run
# make deb    the Debian packages qre and qre-dkms, in dist/
# make wheel  the wheel and the source distribution, in dist/
# make vectors  makes docs/vectors.json, the protocol's test vectors, anew: when the protocol has changed
# make pictures  makes docs/pictures anew: drawings from their sources, a recording of a real first tunnel. As root
# make check  static checks: ruff, mypy, clang-format, shellcheck
# make bench  the user data plane beside wireguard-go
# make bench-server  what handshakes, strangers and clients cost a server, in CPU and memory, and what a large file
#             that comes by way of a server has of the speed of the site itself
# make bench-vm  the kernel module beside WireGuard and openvpn-dco, in a kernel under QEMU
# make bench-likeness  whether connections of QRE can be told from visits to the site, by what a censor sees
# make bench-worst  what the worst packets of a peer cost the kernel module, there

PYTHON := .venv/bin/python
SHELL_FILES := .ci/run run packaging/restart-daemons $(wildcard packaging/*.sh packaging/debian/*.p* tests/vm/guest/*.sh)
PICTURES := $(patsubst %.dot,%.svg,$(wildcard docs/pictures/*.dot)) $(patsubst %.msc,%.svg,$(wildcard docs/pictures/*.msc))
PICTURES += $(patsubst %.gp,%.svg,$(wildcard docs/pictures/*.gp))
C_FILES := $(wildcard bpf/*.c bpf/*.h kmod/*.c kmod/*.h kmod/uapi/*.h tests/vm/guest/*.c tests/vm/guest/*.h)

.PHONY: setup setup-dev setup-tests setup-vm demo test test-unit test-host test-vm test-kasan test-container test-packages
.PHONY: test-cycles test-floods test-clients mutants fuzz deb wheel check vectors pictures bench bench-server bench-vm bench-likeness bench-worst bpf clean

setup:
	@packaging/setup.sh

setup-dev:
	@packaging/setup.sh check tests

setup-tests:
	@packaging/setup.sh tests

setup-vm:
	@packaging/setup.sh tests packaging/vm-packages.txt

demo:
	@packaging/setup.sh demo
	@$(PYTHON) -m demo

test: setup-vm
	@$(PYTHON) -m tests.run unit host vm

test-unit: setup-tests
	@$(PYTHON) -m tests.run unit

test-host: setup-tests
	@$(PYTHON) -m tests.run host

test-vm: setup-vm
	@$(PYTHON) -m tests.support.unstable
	@QRE_VM_ALL=1 $(PYTHON) -m tests.run vm
	@QRE_VM_ALL=1 $(PYTHON) -m pytest -m several_cpus tests/vm

test-kasan:
	@packaging/setup.sh tests packaging/vm-packages.txt packaging/kasan-packages.txt
	@$(PYTHON) -m tests.support.kasan
	@QRE_VM_KASAN=1 QRE_STORM_ROUNDS=$${QRE_STORM_ROUNDS:-20000} $(PYTHON) -m pytest -m "not guest_python" tests/vm

test-container:
	@packaging/setup.sh tests packaging/container-packages.txt
	@QRE_REQUIRE=container $(PYTHON) -m pytest tests/container

test-packages:
	@packaging/setup.sh tests dist packaging/container-packages.txt packaging/deb-packages.txt packaging/vm-packages.txt packaging/image-packages.txt
	@QRE_REQUIRE=packages $(PYTHON) -m pytest tests/packages

test-cycles: setup-tests
	@QRE_CYCLES_ALL=1 $(PYTHON) -m pytest tests/host/test_cycles.py

test-floods: setup-tests
	@QRE_FLOOD_SECONDS=60 QRE_FLOOD_TIMES=10 $(PYTHON) -m pytest -s tests/host/test_hello_flood.py

test-clients: setup-tests
	@QRE_CLIENTS=50 $(PYTHON) -m pytest -s --timeout=1800 tests/host/test_clients_by_name.py -k fifty

mutants: $(if $(filter vm,$(QRE_MUTANTS)),setup-vm,setup-tests)
	@$(PYTHON) -m tests.mutants

fuzz: setup-tests
	@$(PYTHON) -m tests.fuzz.fuzz_peers $${QRE_FUZZ_INPUTS:-1000000} $${QRE_FUZZ_SEED:-1}

vectors: setup-tests
	@$(PYTHON) -m tests.support.protocol_vectors > vectors.new && mv vectors.new docs/vectors.json

pictures:
	@packaging/setup.sh tests packaging/picture-packages.txt
	@$(MAKE) -s -B $(PICTURES)
	@$(PYTHON) -m demo.recording > docs/pictures/new.cast
	@termtosvg render docs/pictures/new.cast docs/pictures/first-tunnel.svg -t window_frame 2>/dev/null
	@rm -rf docs/pictures/stills && mkdir docs/pictures/stills
	@termtosvg render docs/pictures/new.cast docs/pictures/stills -s -t window_frame 2>/dev/null
	@cp "$$(ls docs/pictures/stills/*.svg | tail -n 1)" docs/pictures/show.svg
	@rm -r docs/pictures/new.cast docs/pictures/stills

docs/pictures/%.svg: docs/pictures/%.dot
	dot -Tsvg $< -o $@

docs/pictures/%.svg: docs/pictures/%.msc
	mscgen -T svg -i $< -o $@

docs/pictures/%.svg: docs/pictures/%.gp docs/pictures/%.dat
	gnuplot -e 'data = "$(word 2,$^)"' $< > $@

check:
	@packaging/setup.sh check
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	clang-format --dry-run --Werror $(C_FILES)
	shellcheck $(SHELL_FILES)

bench: setup-tests
	@$(PYTHON) -m tests.bench.dataplane

bench-server:
	@packaging/setup.sh tests packaging/likeness-packages.txt
	@$(PYTHON) -m tests.bench.server
	@$(PYTHON) -m tests.bench.relay
	@$(PYTHON) -m tests.bench.crowd

bench-vm:
	@packaging/setup.sh tests packaging/vm-packages.txt packaging/bench-packages.txt
	@$(PYTHON) -m tests.bench.vm

bench-likeness:
	@packaging/setup.sh tests bench packaging/likeness-packages.txt
	@$(PYTHON) -m tests.bench.likeness $${QRE_VISITS:-200} $${QRE_DISTANCE:-6} $${QRE_JITTER:-1}

bench-worst: setup-vm
	@$(PYTHON) -m tests.bench.worst

deb:
	@packaging/setup.sh packaging/deb-packages.txt
	@packaging/build-deb.sh

wheel:
	@packaging/setup.sh dist
	@packaging/build-wheel.sh

bpf:
	@$(MAKE) -s -C bpf

clean:
	$(MAKE) -s -C bpf clean
	rm -rf build dist packaging/made .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
