package interop

import (
	"path/filepath"
	"testing"

	"plinth/internal/guest"
)

// A snapshot is made without a freeze under a guest's ext4, while files come and
// go. Its clone mounts: the journal is replayed, the file system is sound, and what
// was synced before is there. So it is after a rollback, and the snapshot itself
// can be read as a device.
func TestGuestSnapshot(t *testing.T) {
	t.Parallel()
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	s.command(t, "disk", "create", "data", "512M")
	g := boot(t, guest.Options{
		Processors: 2, // a connection for each
		Modules:    append([]string{"nbd"}, fileSystemModules...),
		Programs:   append([]string{"dumpe2fs"}, fileSystemPrograms...),
		Files:      map[string]string{"/usr/bin/plinth": staticProgram(t)},
		Script: `
export PLINTH_NBD=` + guest.Host + `:` + s.port(t) + `
plinth attach data /dev/nbd0
mkfs.ext4 -q /dev/nbd0
mount -t ext4 /dev/nbd0 /mnt
( while test ! -e /tmp/stop; do
    mkdir -p /mnt/churn
    for i in $(seq 1 20); do dd if=/dev/urandom of=/mnt/churn/$i bs=4k count=$i 2>/dev/null; done
    mv /mnt/churn /mnt/old
    rm -r /mnt/old
  done ) &
churn=$!
for i in $(seq 1 30); do
  dd if=/dev/urandom of=/mnt/$i bs=64k count=4 conv=fsync 2>/dev/null
  sha256sum /mnt/$i >>/tmp/sums
  echo "wrote $i"
done
touch /tmp/stop
wait $churn
umount /mnt
plinth detach data
echo "ready for the clone"
until plinth attach copy /dev/nbd1 2>/dev/null; do sleep 1; done
dumpe2fs -h /dev/nbd1 2>/dev/null | grep needs_recovery
mount -t ext4 /dev/nbd1 /mnt
head -n 10 /tmp/sums >/tmp/before
sha256sum -c /tmp/before >/dev/null
echo "the clone has $(ls /mnt | wc -l) files"
echo written >/mnt/here
umount /mnt
e2fsck -fn /dev/nbd1
plinth detach copy
plinth attach data@mid /dev/nbd2
test "$(cat /sys/block/nbd2/ro)" = 1
dumpe2fs -h /dev/nbd2 2>/dev/null | grep needs_recovery
if dd if=/dev/zero of=/dev/nbd2 bs=4k count=1 oflag=direct 2>/dev/null; then exit 1; fi
plinth detach data@mid
echo "ready for the rollback"
until plinth attach done /dev/nbd4 2>/dev/null; do sleep 1; done
plinth detach done
plinth attach data /dev/nbd3
dumpe2fs -h /dev/nbd3 2>/dev/null | grep needs_recovery
mount -t ext4 /dev/nbd3 /mnt
sha256sum -c /tmp/before >/dev/null
if test -e /mnt/30; then exit 1; fi
umount /mnt
e2fsck -fn /dev/nbd3
plinth detach data
if dmesg | grep -iE 'EXT4-fs (error|warning)'; then exit 1; fi
`})
	await(t, g, "wrote 10\r\n")
	s.command(t, "snapshot", "create", "data", "mid")
	await(t, g, "ready for the clone")
	s.command(t, "clone", "data@mid", "copy")
	await(t, g, "ready for the rollback")
	s.alone(t, "data")
	s.command(t, "snapshot", "rollback", "data@mid")
	s.command(t, "disk", "create", "done", "1M") // the guest waits for it
	succeed(t, g)
	s.verify(t)
	s.stop(t)
}
