package interop

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"plinth/internal/guest"
)

// guestTime bounds the life of a guest: many times what it takes on 2 quiet cores.
const guestTime = 5 * time.Minute

// fileSystems are modules and programs for file systems inside a guest.
var (
	fileSystemModules  = []string{"ext4", "xfs"}
	fileSystemPrograms = []string{"mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_repair", "fstrim", "busybox"}
)

// boot starts a guest that ends with the test.
func boot(t *testing.T, o guest.Options) *guest.Guest {
	t.Helper()
	k, err := guest.FindKernel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o.Timeout = guestTime
	g, err := guest.Start(t.Context(), k, t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Kill)
	return g
}

// succeed waits for the end of a guest, whose script must succeed.
func succeed(t *testing.T, g *guest.Guest) {
	t.Helper()
	status, err := g.Wait()
	if err != nil || status != 0 {
		t.Fatalf("guest: status %d, %v\n%s", status, err, g.Console())
	}
	t.Logf("%s", g.Console())
}

// port is that of the site's TCP address.
func (s *site) port(t *testing.T) string {
	t.Helper()
	_, port, err := net.SplitHostPort(s.tcp)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// The kernel's driver, attached by nbd-client with 4 connections.
func TestGuestClient(t *testing.T) {
	t.Parallel()
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	g := boot(t, guest.Options{
		Processors: 4, // a connection for each
		Modules:    append([]string{"nbd"}, fileSystemModules...),
		Programs:   append([]string{"nbd-client"}, fileSystemPrograms...),
		Script: `
nbd-client ` + guest.Host + ` ` + s.port(t) + ` /dev/nbd0 -N vm1 -C 4 -b 4096
test "$(cat /sys/block/nbd0/size)" = $((10 << 21))
test "$(cat /sys/block/nbd0/queue/discard_max_bytes)" -gt 0
test "$(ls /sys/block/nbd0/mq | wc -l)" = 4
for type in ext4 xfs; do
  echo "making $type"
  mkfs.$type -q /dev/nbd0
  mount -t $type /dev/nbd0 /mnt
  dd if=/dev/urandom of=/mnt/random bs=64k count=128
  cp /bin/busybox /mnt/busybox
  sha256sum /mnt/random /mnt/busybox >/tmp/sums
  rm /mnt/random
  fstrim -v /mnt
  dd if=/dev/urandom of=/mnt/random bs=64k count=64
  sha256sum /mnt/random /mnt/busybox >/tmp/sums
  umount /mnt
  mount -t $type /dev/nbd0 /mnt
  sha256sum -c /tmp/sums
  umount /mnt
  case $type in
  ext4) e2fsck -fn /dev/nbd0 ;;
  xfs) xfs_repair -n /dev/nbd0 ;;
  esac
  dd if=/dev/zero of=/dev/nbd0 bs=1M count=4 oflag=direct
done
nbd-client -d /dev/nbd0
dmesg | grep -iE 'nbd.*error|I/O error' && exit 1
exit 0
`})
	succeed(t, g)
	s.stop(t)
}

// staticProgram is the program without libraries, as it runs everywhere.
func staticProgram(t *testing.T) string {
	t.Helper()
	path, err := buildStatic()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var buildStatic = sync.OnceValues(func() (string, error) {
	path := executable + "-static"
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "plinth/cmd/plinth")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return path, nil
})

// await waits for words on a guest's console.
func await(t *testing.T, g *guest.Guest, text string) {
	t.Helper()
	if err := g.Await(t.Context(), text); err != nil {
		t.Fatalf("%v\n%s", err, g.Console())
	}
}

// again starts a site that has ended on the port it had.
func (s *site) again(t *testing.T) *site {
	t.Helper()
	return start(t, s.data, append(small, "--nbd", s.tcp)...)
}

// The kernel's driver, attached by plinth attach: under writes the server is killed,
// stopped and taken over, the disk grows, and the guest sees pauses and no error.
func TestGuestAttach(t *testing.T) {
	t.Parallel()
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	s.command(t, "disk", "create", "data", "1G")
	g := boot(t, guest.Options{
		Processors: 2, // a connection for each
		Modules:    append([]string{"nbd"}, fileSystemModules...),
		Programs:   append([]string{"resize2fs"}, fileSystemPrograms...),
		Files:      map[string]string{"/usr/bin/plinth": staticProgram(t)},
		Script: `
export PLINTH_NBD=` + guest.Host + `:` + s.port(t) + `
plinth attach data /dev/nbd3 --request-timeout 2s
test "$(cat /sys/block/nbd3/size)" = $((1 << 21))
test "$(ls /sys/block/nbd3/mq | wc -l)" = 2
if plinth attach data /dev/nbd4; then exit 1; fi
if plinth attach vm1 /dev/nbd3; then exit 1; fi
if plinth attach missing; then exit 1; fi
mkfs.ext4 -q /dev/nbd3
mount -t ext4 /dev/nbd3 /mnt
for i in $(seq 1 40); do
  dd if=/dev/urandom of=/mnt/$i bs=256k count=4 conv=fsync 2>/dev/null
  sha256sum /mnt/$i >>/tmp/sums
  echo "wrote $i"
done
echo 3 >/proc/sys/vm/drop_caches
sha256sum -c /tmp/sums >/dev/null
kill -9 $(pidof plinth)
test "$(plinth attach data)" = /dev/nbd3
pidof plinth
echo "grow it"
until test "$(cat /sys/block/nbd3/size)" = $((2 << 21)); do plinth attach data >/dev/null; sleep 1; done
resize2fs /dev/nbd3
dd if=/dev/urandom of=/mnt/large bs=1M count=8
dd if=/dev/zero of=/mnt/holes bs=1M count=1 seek=1536
sha256sum /mnt/large >>/tmp/sums
if plinth detach data; then exit 1; fi
umount /mnt
e2fsck -fn /dev/nbd3
mount -t ext4 /dev/nbd3 /mnt
sha256sum -c /tmp/sums >/dev/null
umount /mnt
plinth detach data
if plinth detach data; then exit 1; fi
test "$(cat /sys/block/nbd3/size)" = 0
sleep 2
if pidof plinth; then exit 1; fi
cat /run/plinth/nbd3.log
dmesg | grep -iE 'nbd3' | tail -20
if dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)'; then exit 1; fi
`})
	await(t, g, "wrote 10\r\n")
	s.kill()
	time.Sleep(time.Second)
	s = s.again(t)
	await(t, g, "wrote 20\r\n")
	s.kill()
	s = s.again(t)
	await(t, g, "wrote 30\r\n")
	s.stop(t)
	s = s.again(t)
	await(t, g, "wrote 35\r\n")
	s = start(t, s.data, append(small, "--take-over")...)
	await(t, g, "grow it")
	s.command(t, "disk", "resize", "data", "2G")
	succeed(t, g)
	s.stop(t)
}
