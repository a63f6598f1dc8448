package interop

import (
	"os"
	"path/filepath"
	"testing"

	"plinth/internal/guest"
)

// A flash cache on a raw device of a guest: what is somebody's is not touched,
// nobody mounts it meanwhile, and it is warm after a stop and after a kill.
func TestGuestCache(t *testing.T) {
	t.Parallel()
	device := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(device, 200<<20); err != nil {
		t.Fatal(err)
	}
	g := boot(t, guest.Options{
		MemoryMiB: 1024,
		Modules:   []string{"ext4"},
		Programs:  []string{"mkfs.ext4", "nbdcopy"},
		Files:     map[string]string{"/usr/bin/plinth": staticProgram(t)},
		Args:      []string{"-drive", "format=raw,if=virtio,cache=unsafe,file=" + device},
		Script: `
mkdir /data
mount -t tmpfs -o size=600m tmpfs /data
export PLINTH_API=unix:/data/p/api.sock
args='up --data /data/p --cache /dev/vda --nbd= --spindles 2 --ec 1+1 --spindle-size 160M --log-size 64M --idle-time 1s'
up() {
  : >/up # at once: what the last one has said is not to be found
  plinth $args >>/up 2>&1 &
  up=$!
  until grep -q msg=serving /up; do sleep 0.2; done
  while plinth status | grep 'looking for more'; do sleep 0.2; done
}
mkfs.ext4 -q /dev/vda
if plinth $args >/up 2>&1; then exit 1; fi
grep 'holds something else' /up
mount -t ext4 /dev/vda /mnt
if plinth $args >/up 2>&1; then exit 1; fi
grep 'in use' /up
umount /mnt
dd if=/dev/zero of=/dev/vda bs=1M count=1 conv=notrunc
up
if mount -t ext4 /dev/vda /mnt; then exit 1; fi
plinth disk create small 8M
dd if=/dev/urandom of=/tmp/image bs=1M count=8
nbdcopy --flush /tmp/image 'nbd+unix:///small?socket=/data/p/nbd.sock'
check() {
  nbdcopy 'nbd+unix:///small?socket=/data/p/nbd.sock' /tmp/copy
  cmp /tmp/copy /tmp/image
}
kill $up; wait $up
up
check
plinth status | grep -E 'flash cache.* [1-4]?[0-9] % of' # what is read ahead may be read twice
kill $up; wait $up
up
check
plinth status | grep -E 'flash cache.* (100|9[0-9]|[5-8][0-9]) % of'
kill -9 $up
sleep 1
up
check
plinth status | grep -E 'flash cache.* (100|9[0-9]|[5-8][0-9]) % of'
kill $up; wait $up
if grep -E 'level=ERROR' /up; then exit 1; fi
`})
	succeed(t, g)
}
