package interop

import (
	"testing"

	"plinth/internal/guest"
)

// Everything over VM sockets, inside a guest, whose kernel connects them to
// itself: this machine's may not. The server has another address beside, and a
// crash loses nothing. The kernel's own client takes no such socket.
func TestGuestVsock(t *testing.T) {
	t.Parallel()
	g := boot(t, guest.Options{
		MemoryMiB: 1024,
		Modules:   []string{"vsock_loopback"},
		Programs:  []string{"nbdinfo", "nbdcopy", "qemu-io"},
		Files:     map[string]string{"/usr/bin/plinth": staticProgram(t)},
		Script: `
mkdir /data
mount -t tmpfs -o size=600m tmpfs /data
up() {
  : >/up
  plinth up --data /data/p --nbd vsock:10809,127.0.0.1:10809 --spindles 2 --ec 1+1 --spindle-size 160M --log-size 64M --idle-time 1s >/up 2>&1 &
  up=$!
  until grep -q msg=serving /up; do sleep 0.2; done
}
up
plinth disk create small 16M --api unix:/data/p/api.sock
nbdinfo --size nbd+vsock://1:10809/small
nbdinfo --size nbd://127.0.0.1/small
plinth bench nbd+vsock://1/small --rw randrw --size 4M --fill --verify --iodepth 16 --runtime 1s
dd if=/dev/urandom of=/tmp/image bs=1M count=8
nbdcopy --flush /tmp/image nbd+vsock://1/small
nbdcopy nbd+vsock://1/small /tmp/copy
head -c 8388608 /tmp/copy | cmp - /tmp/image
if plinth attach small --nbd vsock:1:10809; then exit 1; fi
arguments=$(plinth qemu small --nbd vsock:1:10809 | sed 's/^-blockdev //; s/ -device.*//; s/,node-name=[^,]*//; s/,\(export\|server\|reconnect\)/,file.\1/g; s/driver=/driver=raw,file.driver=/')
qemu-io --image-opts -c 'write -P 7 5000 5000' -c 'read -P 7 5000 5000' -c flush "$arguments"
kill -9 $up
sleep 1
up
nbdcopy nbd+vsock://1/small /tmp/again
head -c 5000 /tmp/copy >/tmp/start
head -c 5000 /tmp/again | cmp - /tmp/start
tail -c +10001 /tmp/copy >/tmp/end
tail -c +10001 /tmp/again | cmp - /tmp/end
kill $up
wait $up
cat /up
if grep -E 'level=ERROR' /up; then exit 1; fi
`})
	succeed(t, g)
}
