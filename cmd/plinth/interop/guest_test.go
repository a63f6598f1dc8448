package interop

import (
	"net"
	"path/filepath"
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
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	g := boot(t, guest.Options{
		Modules:  append([]string{"nbd"}, fileSystemModules...),
		Programs: append([]string{"nbd-client"}, fileSystemPrograms...),
		Script: `
nbd-client ` + guest.Host + ` ` + s.port(t) + ` /dev/nbd0 -N vm1 -C 4 -b 4096
test "$(cat /sys/block/nbd0/size)" = $((10 << 21))
test "$(cat /sys/block/nbd0/queue/discard_max_bytes)" -gt 0
test "$(ls /sys/block/nbd0/mq | wc -l)" = 4
for type in ext4 xfs; do
  echo "making $type"
  mkfs.$type -q /dev/nbd0
  mount -t $type /dev/nbd0 /mnt
  dd if=/dev/urandom of=/mnt/random bs=64k count=512
  cp /bin/busybox /mnt/busybox
  sha256sum /mnt/random /mnt/busybox >/tmp/sums
  rm /mnt/random
  fstrim -v /mnt
  dd if=/dev/urandom of=/mnt/random bs=64k count=256
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
