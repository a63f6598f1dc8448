package interop

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plinth/internal/guest"
)

// rootScript makes the root at the first boot, and mounts it at the others.
const rootScript = `
if ! mount -t ext4 /dev/vda /mnt 2>/dev/null; then
  echo "installing"
  mkfs.ext4 -q /dev/vda
  mount -t ext4 /dev/vda /mnt
  mkdir -p /mnt/bin /mnt/sbin /mnt/usr/bin /mnt/proc /mnt/sys /mnt/dev /mnt/tmp /mnt/data
  cp /bin/busybox /mnt/bin/busybox
  /mnt/bin/busybox --install /mnt/bin
  cp /first /mnt/sbin/init
  sync
  umount /mnt
  reboot -f
fi
mount -o move /dev /mnt/dev
mount -o move /proc /mnt/proc
mount -o move /sys /mnt/sys
`

// firstScript is the first process of the root.
const firstScript = `#!/bin/busybox sh
PATH=/bin:/sbin
export PATH
finish() { echo "guest: status $1"; sync; poweroff -f; }
boot=$(($(cat /data/boots 2>/dev/null || echo 0) + 1))
echo "root is $(grep ' / ' /proc/mounts | tail -1), boot $boot"
for sums in /data/sums*; do
  test -e "$sums" || continue
  sha256sum -c "$sums" >/tmp/checked || finish 1
  echo "checked $(wc -l </tmp/checked) of $sums"
done
echo $boot >/data/boots
for i in $(seq 1 30); do
  dd if=/dev/urandom of=/data/$boot.$i bs=256k count=4 conv=fsync 2>/dev/null || finish 2
  sha256sum /data/$boot.$i >>/data/sums$boot || finish 3
  echo "boot $boot wrote $i"
done
rm /data/$boot.1
sed -i 1d /data/sums$boot
fstrim -v / || finish 4
dmesg | grep -E 'I/O error|EXT4-fs error|filesystem read-only' && finish 5
sync
if test $boot -lt 2; then reboot -f; fi
finish 0
`

// A guest with its root on a disk of ours, by the arguments that plinth qemu
// prints: it installs itself, reboots, and writes while plinth is killed and
// stopped.
func TestGuestRoot(t *testing.T) {
	t.Parallel()
	s := start(t, filepath.Join(tempDir(t), "data"), small...)
	s.command(t, "disk", "create", "root", "1G")
	first := filepath.Join(t.TempDir(), "first")
	if err := os.WriteFile(first, []byte(firstScript), 0o600); err != nil {
		t.Fatal(err)
	}
	args := s.command(t, "qemu", "root", "--nbd", "unix:"+s.socket)
	g := boot(t, guest.Options{
		Reboots: true, Modules: []string{"ext4"}, Programs: []string{"mkfs.ext4"},
		Files:  map[string]string{"/first": first},
		Script: rootScript,
		Args:   strings.Fields(args),
	})
	await(t, g, "boot 1 wrote 5\r\n")
	s.kill()
	time.Sleep(time.Second)
	s = s.again(t)
	await(t, g, "boot 1 wrote 15\r\n")
	s.stop(t)
	s = s.again(t)
	await(t, g, "boot 2 wrote 10\r\n")
	s.kill()
	s = s.again(t)
	succeed(t, g)
	s.stop(t)
}
