# Daily commands. Each runs from the top of the repository.

# list the recipes
default:
    @just --list

# run every check, or only the stages named: just test unit lint
test *STAGES:
    scripts/test {{STAGES}}

# format, vet and staticcheck: seconds
lint:
    scripts/test format vet lint

# write all files as gofmt wants them
format:
    gofmt -w .

# search for inputs that break a decoder: just fuzz internal/chunk FuzzParseHeader 60s
fuzz PKG TARGET TIME="30s":
    go test -run '^$' -fuzz '^{{TARGET}}$' -fuzztime {{TIME}} ./{{PKG}}

# name the fuzz targets
fuzz-list:
    @grep -rnoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sed 's,^\./,,; s,/[^/]*:[0-9]*:func ,  ,' | sort

# run the Go benchmarks of a package, and those below it: just bench internal/chunk Seal
bench PKG="." MATCH=".":
    go test -run '^$' -bench '{{MATCH}}' -benchmem ./{{PKG}}/...

# compare with qemu-nbd and nbdkit under fio: some 15 minutes, on a quiet machine; --help says what parts there are
compare *ARGS:
    scripts/compare {{ARGS}}

# where plinth's CPU time goes in a row of the comparison, by stage: just profile read-32
profile ROW="write-32":
    go run ./cmd/plinth bench compare --profile {{ROW}}

# more disks, depth, size (two minutes), and 10 million mapped chunks (half a minute); BIG=true: 100 million (some 10 minutes, 4 GB)
scale BIG="false":
    go run ./cmd/plinth bench compare --scale
    go test -count=1 -timeout 0 -run '^TestScale$' -v ./blockmap -scale-chunks 10000000 -scale-tib 10 -scale-reads 20000
    {{BIG}} && go test -count=1 -timeout 0 -run '^TestScale$' -v ./blockmap -scale-chunks 100000000 -scale-tib 10 -scale-reads 20000 || ! {{BIG}}

# many hosts over ten data nodes, event by event in virtual time: some minutes
rack-model:
    go test -count=1 -timeout 0 -run '^TestSimRackModel$' -v ./bench -rack-whole

# all loads at once, with snapshots: fails if memory grows
soak MINUTES="30":
    go test -count=1 -timeout 0 -run '^TestSoak$' -v ./cmd/plinth/interop -soak-time {{MINUTES}}m

# migrate a guest live between two hosts and back, 20 times: three minutes
migrate TIMES="20":
    go test -count=1 -timeout 0 -run '^TestMigration$' -v ./cmd/plinth/interop -migrations $((2 * {{TIMES}}))

# kill data nodes of a pool of three under load, with the registry at one of them and in etcd: just nodes 10m
nodes TIME="10m":
    go test -count=1 -timeout 0 -run '^TestNodes' -v ./cmd/plinth/interop -nodes-time {{TIME}}

# a bound of one core under load, how soon a change holds, and what a busy disk costs a quiet one: three minutes, on a quiet machine
bound TIME="60s":
    go test -count=1 -run "^TestCPUBound$" -v ./cmd/plinth/interop -bound-time {{TIME}}

# fio against the real program at full size: 4 jobs of 256 MiB over each kind of socket, verified; takes a minute and 6 GB
fio-full:
    go test -count=1 -timeout 20m -run TestFio -v ./cmd/plinth/interop -job-mib 256

# trim a disk of 64 TiB over NBD, at once and by 32,768 requests, and compare its reads with another's: a minute
trim:
    go test -count=1 -run '^TestTrimWhole$' -v ./cmd/plinth/interop -read-time 1s

# kill plinth under load 300 times: some 6 minutes; if cut off, the same call goes on
crash KILLS="300" DIR="/tmp/plinth-crash":
    mkdir -p {{DIR}}
    PLINTH_CRASH_ROUNDS={{KILLS}} PLINTH_CRASH_DIR={{DIR}} go test -count=1 -timeout 0 -v -run '^TestCrashKill$' ./internal/crash

# kill plinth 100 times while snapshots, clones and reclaim are under way: some 6 minutes
crash-snapshots KILLS="100":
    PLINTH_CRASH_ROUNDS={{KILLS}} go test -count=1 -timeout 0 -v -run '^TestCrashSnapshots$' ./internal/crash

# add, drain and remove data nodes while hosts and data nodes are killed: half a minute a round
node-changes ROUNDS="10":
    go test -count=1 -timeout 0 -run '^TestNodeChange' -v ./cmd/plinth/interop -change-rounds {{ROUNDS}} -change-fill 64

# random histories of snapshots, clones, rollbacks, reclaim and crashes against a model: hours; if cut off, the same call goes on
histories N="20000" DIR="/tmp/plinth-histories":
    mkdir -p {{DIR}}
    for i in $(seq 1 1000 {{N}}); do go test -count=1 -timeout 0 -v -run '^TestSimHistories$' ./internal/history -histories {{N}} -history-most 1000 -history-dir {{DIR}} || exit 1; done

# whole pools simulated from seeds 1 to N, 1,000 operations and 20 faults each: a minute for 10,000 on two cores; if cut off, the same call goes on
sim N="1000000" DIR="/tmp/plinth-sim":
    mkdir -p {{DIR}}
    go test -count=1 -timeout 0 -v -run '^TestSimPools$' ./internal/sim -sim-seeds {{N}} -sim-dir {{DIR}}

# the real hosts, data nodes, registry and maps in one process and simulated time, from seeds 1 to N, 1,000 operations and 20 faults each: an hour and a half for 2,000; if cut off, the same call goes on
sim-whole N="2000" DIR="/tmp/plinth-sim-whole":
    mkdir -p {{DIR}}
    go test -count=1 -timeout 0 -v -run '^TestSimWhole$' ./internal/host -whole-seeds {{N}} -whole-dir {{DIR}}

# histories of 10,000 operations by way of three hosts that are cut off and taken over from, each checked for being linearizable: 1,000 take a quarter of an hour
linear RUNS="1000":
    go test -count=1 -timeout 0 -run '^TestSimLinearizable$' -v ./internal/host -linear-runs {{RUNS}}

# the same with two hosts as processes: 26 seconds a history
linear-hosts RUNS="10":
    go test -count=1 -timeout 0 -run '^TestLinearizable$' -v ./cmd/plinth/interop -linear-histories {{RUNS}}

# the program of an earlier commit as data node or host beside the present one
older COMMIT DIR="/tmp/plinth-older":
    git worktree add --detach {{DIR}} {{COMMIT}}
    cd {{DIR}} && go build -o {{DIR}}/older ./cmd/plinth
    go test -count=1 -run '^TestOlderProgram$' -v ./cmd/plinth/interop -older {{DIR}}/older; status=$?; git worktree remove --force {{DIR}}; exit $status

# snapshots of two hosts' disks at one instant, under takeovers, lost answers and late transactions, in simulated time: 1,000 take half a minute
groups ROUNDS="1000":
    go test -count=1 -timeout 0 -run '^TestSimGroups$' -v ./internal/host -group-rounds {{ROUNDS}}

# the same with two hosts as processes, of which one dies in the middle: a minute for 10; and for how long writes stand still beside COUNT without
group-hosts TAKEOVERS="10" COUNT="200":
    go test -count=1 -timeout 0 -run '^TestGroupSnapshots$' -v ./cmd/plinth/interop -group-takeovers {{TAKEOVERS}} -group-count {{COUNT}}

# a host that reclaims is taken over from in the middle of that: 200 take a minute of CPU time
reclaim-takeovers N="200":
    go test -count=1 -timeout 0 -run '^TestSimReclaimTakeover$' -v ./internal/host -reclaim-takeovers {{N}}

# random reads, writes, trims and zeroes at any byte against memory, with kills and snapshots: ten minutes a million
fsx OPS="1000000":
    go test -count=1 -timeout 0 -run '^TestFsx$' -v ./cmd/plinth/interop -fsx-ops {{OPS}}

# what a guest does to ext4 and xfs, replayed with losses of power at so many places each: some minutes
replay POINTS="12" FILES="30":
    go test -count=1 -timeout 0 -run '^TestGuestReplay$' -v ./cmd/plinth/interop -replay-points {{POINTS}} -replay-files {{FILES}}

# kill the host of a disk with so much mapped, and read by another one: 32 GiB take some minutes
takeover GIB="32":
    go test -count=1 -timeout 0 -run '^TestTakeoverOfMap$' -v ./cmd/plinth/interop -takeover-gib {{GIB}}

# lose power in simulation, 2,000 times in a minute and a process: just power-loss 60
power-loss MINUTES="20":
    for i in $(seq {{MINUTES}}); do go test -count=1 -v -run '^TestSimPowerLoss$' ./internal/crash || exit 1; done

# kill hosts, data nodes and members of etcd under a pool of 3 nodes, 3 members, 4 hosts and 8 disks, one at a time
rack TIME="10m":
    go test -count=1 -timeout 0 -run '^TestRack$' -v ./cmd/plinth/interop -rack-time {{TIME}}

# damage so many blocks, headers and whole fragments of a pool within the parity's power: 100,000 take some 4 minutes
damage COUNT="100000":
    go test -count=1 -timeout 0 -v -run '^TestSimDamage$' ./internal/standalone -damages {{COUNT}}

# what snapshots cost with none and with 10,000, on a disk of 1 GiB (a minute) and on one of 10 TiB with 20 million chunks (BIG=true: three minutes, 20 GB of files and 11 GB of memory in MAPS)
snapshots BIG="false" MAPS="/dev/shm":
    go test -count=1 -timeout 0 -v -run '^TestSimSnapshotCost$' ./internal/disk -cost-strict -cost-chunks 262144 -cost-tib 0.00098 -cost-snapshots 10000 -cost-marks 1000 -cost-reads 5000
    {{BIG}} && go test -tags synthetic -count=1 -timeout 0 -v -run '^TestSimSnapshotCost$' ./internal/disk -cost-strict -cost-files -cost-maps {{MAPS}} -cost-chunks 20000000 -cost-tib 10 -cost-snapshots 10000 -cost-marks 1000 -cost-reads 5000 || ! {{BIG}}

# replace a spindle and rebuild it without a bound, with spindles of so many MiB/s that take 8 ms to begin (0: as files are): half a minute, 3 GB
rebuild MIB="768" DRIVE="100" SPINDLES="10":
    go test -count=1 -timeout 0 -v -run '^TestRebuild$' ./internal/standalone -rebuild-mib {{MIB}} -rebuild-spindles {{SPINDLES}} -rebuild-drive {{DRIVE}}

# thousands of pools whose spindles go, come back and are replaced while hosts restore: a minute for 5,000
rebuild-sim SEEDS="5000":
    go test -count=1 -timeout 0 -run '^TestSimRebuild$' ./internal/rebuild -rebuild-seeds {{SEEDS}}

# fill a pool and write over it while snapshots come and go, beside a greedy cleaner's simulation: just fill 90 false
fill LIVE="80" SKEWED="false" TIMES="5" MIB="256" MAX="0" RATIO="1.3":
    go test -count=1 -timeout 0 -v -run '^TestSimFill$' ./internal/host -fill-live {{LIVE}} -fill-skewed={{SKEWED}} -fill-times {{TIMES}} -fill-mib {{MIB}} -fill-max {{MAX}} -fill-ratio {{RATIO}}

# hit ratios of the flash cache beside other ways to evict: just eviction; TRACE has lines of a read's byte offset and length, as awk makes them of blktrace
eviction CHUNKS="8000" READS="400000" TRACE="":
    go test -count=1 -v -run '^TestSimEviction$' ./flashcache -sim-all -sim-chunks {{CHUNKS}} -sim-reads {{READS}} -sim-trace '{{TRACE}}'

# writes beside a paced cycle of reclaim against those without one, at a moderate rate: a minute, on a quiet machine
fill-paced RATE="6" RISE="1.2":
    go test -count=1 -timeout 0 -v -run '^TestSimFill$' ./internal/host -fill-live 60 -fill-rate {{RATE}} -fill-times 1.6 -fill-rise {{RISE}}

# plant bugs, one at a time, and see that the tests find each: three quarters of an hour; BUGS is a regular expression of their names
planted BUGS=".":
    go test -count=1 -timeout 0 -v -run '^TestBugsCaught$' ./internal/planted -planted '{{BUGS}}'
