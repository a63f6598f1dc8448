package interop

import "testing"

// Random writes of many sizes with 32 in flight, each block read back and its
// checksum verified.
func TestFio(t *testing.T) {
	everywhere(t, diskBytes, func(t *testing.T, h *house) {
		run(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+h.uri("disk"), "--size=24m",
			"--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=0", "--iodepth=32", "--fsync=64",
			"--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randrepeat=0", "--verify_state_save=0", "--allow_file_create=0", "--eta=never")
		run(t, "fio", "--name=mixed", "--ioengine=nbd", "--uri="+h.uri("disk"), "--size=24m",
			"--rw=randrw", "--bs=4k", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64",
			"--randrepeat=0", "--verify_state_save=0", "--allow_file_create=0", "--eta=never")
	})
}
