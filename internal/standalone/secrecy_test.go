package standalone

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"plinth/datanode"
	"plinth/datanode/shelf"
	"plinth/internal/chunk"
	ids "plinth/internal/id"
	"plinth/internal/keyring"
)

// secrets are what must be found nowhere.
type secrets map[string][]byte

// scan reads every byte of every file below dir, and tests that none of the
// secrets is there. A secret may lie in files whose name allowed names.
func (s secrets) scan(t testing.TB, when, dir string, allowed func(secret, path string) bool) (files int, bytesRead int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		files++
		bytesRead += int64(len(data))
		for name, secret := range s {
			if at := bytes.Index(data, secret); at >= 0 && !allowed(name, path) {
				t.Errorf("%s: %s is at byte %d of %s", when, name, at, path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files, bytesRead
}

func (s secrets) scanText(t testing.TB, when, text string) {
	t.Helper()
	for name, secret := range s {
		if strings.Contains(text, string(secret)) {
			t.Errorf("%s: %s is in it", when, name)
		}
	}
}

// TestSimSecrecy writes a marker through NBD in data of every kind, with both
// suites, and looks for it, and for the root key, in every byte of every file:
// before destaging, after it, and after a crash.
func TestSimSecrecy(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dir := t.TempDir()
	flags := []string{
		"--spindle-size", "64M", "--log-size", "64M", "--verbose", "--destage-interval", "1h",
	}
	u := startUp(t, dir, flags...)
	mark := fmt.Sprintf("plinth-marker-%016x", seed)
	hidden := secrets{"the marker": []byte(mark)}
	ownKey := func(secret, path string) bool {
		return secret == "the root key in letters" && path == filepath.Join(dir, "root.key")
	}
	scan := func(when string) {
		t.Helper()
		files, n := hidden.scan(t, when, dir, ownKey)
		if files < 20 || n < 64<<20 {
			t.Errorf("%s: only %d files of %d bytes were looked at", when, files, n)
		}
		hidden.scanText(t, when+", log", u.said())
	}
	if out, code := u.run("disk", "create", "xts", "64M", "--cipher", "aes-256-xts"); code != 0 {
		t.Fatal(out)
	}
	names := []string{"vm1", "xts"}
	for n, name := range names {
		writeMarked(t, u, name, mark, seed+uint64(n), 0)
	}
	scan("before destaging")
	u.stop() // which destages
	hidden.addKeys(t, dir)
	scan("after a stop")
	u = startUp(t, dir, append(flags[:len(flags)-1:len(flags)-1], "100ms", "--checkpoint-updates", "100")...)
	for n, name := range names {
		writeMarked(t, u, name, mark, seed+uint64(n), 0)
		writeMarked(t, u, name, mark, seed+10+uint64(n), 16<<20)
	}
	time.Sleep(time.Second)
	scan("while it destages")
	for n, name := range names {
		writeMarked(t, u, name, mark, seed+20+uint64(n), 32<<20)
	}
	u.end(syscall.SIGKILL)
	scan("after a crash")
	u = startUp(t, dir, flags...)
	for n, name := range names {
		readMarked(t, u, name, mark, seed+uint64(n), 0)
		readMarked(t, u, name, mark, seed+20+uint64(n), 32<<20)
	}
	out, _ := u.run("status", "--json")
	hidden.scanText(t, "status", out)
	out, code := u.run("verify")
	if code != 0 {
		t.Error(out)
	}
	hidden.scanText(t, "verify", out)
	u.stop()
	hidden.addKeys(t, dir)
	scan("at the end")
}

// addKeys adds the keys of a stopped pool.
func (s secrets) addKeys(t testing.TB, dir string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	letters := bytes.Fields(text)[1]
	s["the root key in letters"] = letters
	if s["the root key"], err = hex.DecodeString(string(letters)); err != nil {
		t.Fatal(err)
	}
	root, err := keyring.LoadRootFile(filepath.Join(dir, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "datanode")
	id, err := shelf.PoolID(vfs.Default, path)
	if err != nil {
		t.Fatal(err)
	}
	node, err := shelf.Open(t.Context(), path, shelf.Options{PoolID: id})
	if err != nil {
		t.Fatal(err)
	}
	header, err := node.RegistryGet(t.Context(), &datanode.RegistryGetRequest{Key: "pool"})
	if err != nil {
		t.Fatal(err)
	}
	pool, err := keyring.OpenPool(header.Value, root)
	if err != nil {
		t.Fatal(err)
	}
	add := func(name string, key *chunk.Secret) {
		b := key.Reveal()
		s[name] = b[:]
		s[name+" in letters"] = hex.AppendEncode(nil, b[:])
	}
	add("the fingerprint key", pool.FingerprintKey())
	add("a MAC key", pool.MACKey(1))
	sessions, err := node.RegistryList(t.Context(), &datanode.RegistryListRequest{Prefix: "key/"})
	if err != nil || len(sessions.Entries) == 0 {
		t.Fatal(err, len(sessions.Entries))
	}
	for _, e := range sessions.Entries {
		n, err := strconv.ParseUint(strings.TrimPrefix(e.Key, "key/"), 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		key, err := pool.UnwrapSession(ids.Key(n), e.Value)
		if err != nil {
			t.Fatal(err)
		}
		add("data "+e.Key, key)
	}
	for name, secret := range s {
		if len(secret) < 16 {
			t.Fatalf("%s has %d bytes", name, len(secret))
		}
	}
	if err := node.Close(); err != nil {
		t.Fatal(err)
	}
}

// marked is 3 MiB of data with the marker in it: incompressible, compressible,
// and to be written as a part of a chunk.
func marked(mark string, seed uint64) (data []byte, part []byte) {
	data = image(seed, 3<<20)
	for off := 0; off < 1<<20; off += 64 << 10 {
		copy(data[off+int(seed%3000):], mark)
	}
	for off := 1 << 20; off < 2<<20; off += 64 << 10 {
		copy(data[off:off+64<<10], bytes.Repeat([]byte(mark+" "), 64<<10/len(mark)))
	}
	part = append(image(seed+1, 100), mark...)
	return data, append(part, image(seed+2, 100)...)
}

const partAt = 4<<20 + 1000

func writeMarked(t testing.TB, u *up, name, mark string, seed uint64, off int64) {
	t.Helper()
	c := u.connect(name)
	defer c.Close()
	data, part := marked(mark, seed)
	for n := 0; n < len(data); n += 1 << 20 {
		if err := c.WriteAt(t.Context(), data[n:n+1<<20], off+int64(n), false); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.WriteAt(t.Context(), part, off+partAt, true); err != nil {
		t.Fatal(err)
	}
}

func readMarked(t testing.TB, u *up, name, mark string, seed uint64, off int64) {
	t.Helper()
	c := u.connect(name)
	defer c.Close()
	data, part := marked(mark, seed)
	got := make([]byte, len(data))
	if err := c.ReadAt(t.Context(), got, off); err != nil || !bytes.Equal(got, data) {
		t.Errorf("disk %s at %d is not what was written: %v", name, off, err)
	}
	if err := c.ReadAt(t.Context(), got[:len(part)], off+partAt); err != nil || !bytes.Equal(got[:len(part)], part) {
		t.Errorf("disk %s at %d is not what was written: %v", name, off+partAt, err)
	}
}
