package compare

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"plinth/internal/api"
)

// Server is a program that serves a disk, or stands for one.
type Server struct {
	Name  string
	Title string
	// special ones are only in the rows that name them.
	special bool
	// cipher of plinth's disk.
	cipher string
	// argv makes the disk, where a file is wanted, and returns the command.
	argv func(ctx context.Context, c *Config, work, socket string) ([]string, error)
}

const (
	plinth   = "plinth"
	xts      = "plinth-xts"
	flash    = "plinth-flash"
	flashXTS = "plinth-flash-xts"
	memory   = "nbdkit-memory"
	null     = "null"
	file     = "file"
	export   = "compare"
)

// Servers are all that are compared: plinth first, to which ratios are taken.
var Servers = []Server{
	{Name: plinth, Title: "plinth, GCM", cipher: "aes-256-gcm", argv: plinthArgv},
	{Name: xts, Title: "plinth, XTS", special: true, cipher: "aes-256-xts", argv: plinthArgv},
	{Name: flash, Title: "plinth, GCM, from flash", special: true, cipher: "aes-256-gcm", argv: flashArgv},
	{Name: flashXTS, Title: "plinth, XTS, from flash", special: true, cipher: "aes-256-xts", argv: flashArgv},
	{Name: memory, Title: "nbdkit memory", special: true, argv: nbdkitMemory},
	{Name: "nbdkit-file", Title: "nbdkit file", argv: nbdkitFile},
	{Name: "qemu-raw", Title: "qemu-nbd raw", argv: qemuRaw},
	{Name: "qemu-qcow2", Title: "qemu-nbd qcow2", argv: qemuQcow2},
	{Name: "qemu-luks", Title: "qemu-nbd qcow2, LUKS", argv: qemuLUKS},
	{Name: file, Title: "a raw file, fdatasync", special: true},
	{Name: null, Title: "plinth's NBD server on memory", special: true, argv: nullArgv},
}

func serverNames() []string {
	var names []string
	for _, s := range Servers {
		names = append(names, s.Name)
	}
	return names
}

func (s *Server) isPlinth() bool { return s.cipher != "" }

func plinthArgv(_ context.Context, c *Config, work, socket string) ([]string, error) {
	return []string{c.Plinth, "up", "--data", filepath.Join(work, "pool"), "--nbd", "", "--nbd-socket", socket, "--api", "unix:" + apiSocket(work),
		"--log-size", strconv.FormatInt(c.LogBytes, 10), "--spindle-size", strconv.FormatInt(spindleBytes, 10)}, nil
}

// flashArgv has no RAM cache, and a flash cache that holds the disk.
func flashArgv(ctx context.Context, c *Config, work, socket string) ([]string, error) {
	argv, err := plinthArgv(ctx, c, work, socket)
	return append(argv, "--ram-cache", "0", "--cache", filepath.Join(work, "flash"), "--cache-size", strconv.FormatInt(flashTimes*c.DiskBytes, 10)), err
}

// flashTimes is how much larger than the disk the flash cache is: chunks of a disk
// that is written over stay in it until their turn comes.
const flashTimes = 4

func apiSocket(work string) string { return filepath.Join(work, "api") }

func nullArgv(_ context.Context, c *Config, _, socket string) ([]string, error) {
	return []string{c.Plinth, "bench", "serve-null", "--nbd-socket", socket, "--size", strconv.FormatInt(c.DiskBytes, 10)}, nil
}

func nbdkitMemory(_ context.Context, c *Config, _, socket string) ([]string, error) {
	return []string{"nbdkit", "--foreground", "-U", socket, "memory", strconv.FormatInt(c.DiskBytes, 10)}, nil
}

func nbdkitFile(_ context.Context, c *Config, work, socket string) ([]string, error) {
	disk, err := rawDisk(c, work)
	return []string{"nbdkit", "--foreground", "-U", socket, "file", disk}, err
}

func rawDisk(c *Config, work string) (string, error) {
	disk := filepath.Join(work, "disk")
	f, err := os.Create(disk)
	if err != nil {
		return "", err
	}
	return disk, errors.Join(f.Truncate(c.DiskBytes), f.Close())
}

// qemuNBD allows a connection to each of 32 jobs.
func qemuNBD(socket string, more ...string) []string {
	return append([]string{"qemu-nbd", "--persistent", "--cache=writeback", "--discard=unmap", "--shared=64", "-k", socket}, more...)
}

func qemuRaw(_ context.Context, c *Config, work, socket string) ([]string, error) {
	disk, err := rawDisk(c, work)
	return qemuNBD(socket, "-f", "raw", disk), err
}

func qemuQcow2(ctx context.Context, c *Config, work, socket string) ([]string, error) {
	disk := filepath.Join(work, "disk")
	return qemuNBD(socket, "-f", "qcow2", disk), tool(ctx, "qemu-img", "create", "-q", "-f", "qcow2", disk, strconv.FormatInt(c.DiskBytes, 10))
}

// luksTriesMax bounds how often a LUKS image is tried to be made: qemu-img times its
// key derivation and, on machines whose CPU clock steps back, gives up at once, in
// up to every second call.
const (
	luksTriesMax = 30
	luksClock    = "Unable to get accurate CPU usage"
)

// qemuLUKS has LUKS's default, AES-256 in XTS mode. iter-time is that of the
// passphrase, which is nothing here.
func qemuLUKS(ctx context.Context, c *Config, work, socket string) ([]string, error) {
	const secret = "secret,id=s,data=compare"
	disk := filepath.Join(work, "disk")
	var err error
	for range luksTriesMax {
		err = tool(ctx, "qemu-img", "create", "-q", "--object", secret, "-f", "qcow2",
			"-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", disk, strconv.FormatInt(c.DiskBytes, 10))
		if err == nil || !strings.Contains(err.Error(), luksClock) {
			break
		}
	}
	return qemuNBD(socket, "--object", secret, "--image-opts",
		"driver=qcow2,encrypt.format=luks,encrypt.key-secret=s,file.driver=file,file.filename="+disk), err
}

func tool(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %q: %w: %s", name, args, err, out)
	}
	return nil
}

// serving is a server that runs.
type serving struct {
	*Server
	cmd  *exec.Cmd     // nil for a raw file
	api  *api.Client   // of plinth
	done chan struct{} // closed when the process has ended
	said *os.File
	// work has all files of the server, socket is where NBD is served.
	work, socket string
	// disks are how fio reaches each disk.
	disks [][]string
	// cold says that something was written since all was last read.
	cold bool
}

// startTimeMax bounds the start of a server.
const startTimeMax = 30 * time.Second

// start starts a server in a directory of its own below c.Dir.
func start(ctx context.Context, c *Config, s *Server) (*serving, error) {
	work := filepath.Join(c.Dir, s.Name)
	if err := os.Mkdir(work, 0o700); err != nil {
		return nil, err
	}
	v := &serving{Server: s, work: work}
	if s.argv == nil {
		disk, err := rawDisk(c, work)
		v.disks = [][]string{{"--ioengine=psync", "--filename=" + disk}}
		return v, err
	}
	socket := filepath.Join(work, "nbd")
	argv, err := s.argv(ctx, c, work, socket)
	if err != nil {
		return nil, err
	}
	if v.said, err = os.Create(filepath.Join(work, "said")); err != nil {
		return nil, err
	}
	v.cmd = exec.Command(argv[0], argv[1:]...)
	v.cmd.Stdout, v.cmd.Stderr = v.said, v.said
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := v.cmd.Start(); err != nil {
		return nil, errors.Join(err, v.said.Close())
	}
	v.done = make(chan struct{})
	go func() {
		_ = v.cmd.Wait() // a server that fails is noticed by who talks to it
		close(v.done)
	}()
	v.socket = socket
	if !s.isPlinth() {
		v.disks = [][]string{v.uri("")}
	}
	if err = v.await(socket); err == nil && s.isPlinth() {
		err = v.await(apiSocket(work)) // it comes after the other
		if err == nil {
			v.api, err = client(work)
		}
		if err == nil {
			err = v.createDisk(ctx, export, c.DiskBytes)
		}
	}
	if err != nil {
		return nil, errors.Join(err, v.stop())
	}
	return v, nil
}

// await returns when the server listens.
func (v *serving) await(socket string) error {
	for deadline := time.Now().Add(startTimeMax); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-v.done:
			return v.complaint("ended")
		default:
		}
	}
	return v.complaint("does not listen")
}

func (v *serving) complaint(what string) error {
	said, _ := os.ReadFile(v.said.Name()) // the complaint is worth having without
	return fmt.Errorf("%s %s: %s", v.Name, what, strings.TrimSpace(string(said)))
}

// uri is how fio reaches an export.
func (v *serving) uri(name string) []string {
	return []string{"--ioengine=nbd", "--uri=nbd+unix:///" + name + "?socket=" + v.socket}
}

func client(work string) (*api.Client, error) {
	addr, err := api.ParseAddress("unix:" + apiSocket(work))
	if err != nil {
		return nil, err
	}
	return api.NewClient(addr, api.ClientOptions{})
}

// createDisk adds a disk of plinth.
func (v *serving) createDisk(ctx context.Context, name string, bytes int64) error {
	_, err := v.api.CreateDisk(ctx, api.CreateDisk{Name: name, Bytes: bytes, Cipher: v.cipher})
	if err == nil {
		v.disks = append(v.disks, v.uri(name))
	}
	return err
}

// settle returns when nothing that was written is still to be done.
func (v *serving) settle(ctx context.Context) error {
	if v.api == nil {
		return nil
	}
	return v.api.Quiesce(ctx)
}

// writeBack empties the page cache of what the server wrote, or the kernel does in
// somebody else's turn.
func (v *serving) writeBack() error {
	return filepath.WalkDir(v.work, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the server goes on removing files of its own
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

// pause and resume stop the process and let it go on.
func (v *serving) pause() error { return v.signal(syscall.SIGSTOP) }

func (v *serving) resume() error { return v.signal(syscall.SIGCONT) }

func (v *serving) signal(s syscall.Signal) error {
	if v.cmd == nil {
		return nil
	}
	if err := v.cmd.Process.Signal(s); err != nil {
		return v.complaint(err.Error())
	}
	return nil
}

// stop ends the process at once: what it has is of no use any more.
func (v *serving) stop() error {
	if v.cmd == nil {
		return nil
	}
	_ = v.cmd.Process.Kill() // fails for one that has ended
	<-v.done
	return v.said.Close()
}

// cpu returns the user and system time of the process so far.
func (v *serving) cpu() (time.Duration, error) {
	if v.cmd == nil {
		return 0, nil
	}
	return processCPU(v.cmd.Process.Pid)
}

// memory returns what memory the process has, and the most that it had.
func (v *serving) memory() (now, most int64, err error) {
	if v.cmd == nil {
		return 0, 0, nil
	}
	return processMemory(v.cmd.Process.Pid)
}

// counts are what plinth has counted so far.
type counts struct {
	logged            int64 // bytes of the log
	ram, flash, below int64 // chunks, or pages, that reads found there
}

func (v *serving) counts(ctx context.Context) (counts, error) {
	if v.api == nil {
		return counts{}, nil
	}
	st, err := v.api.Status(ctx)
	if err != nil {
		return counts{}, err
	}
	c := counts{logged: st.Node.Log.WrittenBytes, ram: int64(st.RAMCache.Hits)}
	for i := range st.Disks {
		c.flash += st.Disks[i].Stats.FlashReads
		c.below += st.Disks[i].Stats.ChunkReads
	}
	return c, nil
}
