package keyring

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plinth/internal/chunk"
	"plinth/internal/id"
)

// cheap are the least parameters allowed: tests derive often.
var cheap = KDFParams{Passes: 1, MemoryKiB: kdfMemoryKiBMin, Threads: 1, Salt: [16]byte{1, 2, 3}}

// fixed returns a secret of equal bytes.
func fixed(t testing.TB, b byte) *chunk.Secret {
	t.Helper()
	s, err := chunk.SecretFromBytes(bytes.Repeat([]byte{b}, chunk.SecretBytes))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func passphrase(t testing.TB, pass string, params KDFParams) *Root {
	t.Helper()
	r, err := PassphraseRoot([]byte(pass), params)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// reseal gives a changed header the right checksum again.
func reseal(h []byte) []byte {
	binary.LittleEndian.PutUint32(h[headerSum:], crc32.Checksum(h[:headerSum], castagnoli))
	return h
}

func TestPoolOpensWithItsRootOnly(t *testing.T) {
	file, other := newRoot(fixed(t, 1), nil), newRoot(fixed(t, 2), nil)
	pass := passphrase(t, "correct horse", cheap)
	salted := cheap
	salted.Salt[0]++
	for _, right := range []*Root{file, pass} {
		header, pool := CreatePool(right, NewPoolID())
		again, err := OpenPool(header, right)
		if err != nil {
			t.Fatal(err)
		}
		if again.ID() != pool.ID() || again.secret.Reveal() != pool.secret.Reveal() {
			t.Errorf("%s: opened another pool", right.Kind())
		}
		for name, wrong := range map[string]*Root{
			"another file": other, "another passphrase": passphrase(t, "correct horsf", cheap),
			"another salt": passphrase(t, "correct horse", salted),
		} {
			if _, err := OpenPool(header, wrong); !errors.Is(err, ErrWrongRoot) {
				t.Errorf("%s, opened with %s: %v", right.Kind(), name, err)
			}
		}
	}
	header, _ := CreatePool(file, NewPoolID())
	if _, err := OpenPool(header, pass); !errors.Is(err, ErrWrongRoot) || !strings.Contains(err.Error(), "root key file") {
		t.Errorf("a passphrase for a pool with a file: %v", err)
	}
}

// A header says all that a passphrase needs but the passphrase.
func TestPassphraseFromHeader(t *testing.T) {
	header, pool := CreatePool(passphrase(t, "sesame", cheap), NewPoolID())
	h, err := ParsePoolHeader(header)
	if err != nil {
		t.Fatal(err)
	}
	if want := (PoolHeader{pool.ID(), RootPassphrase, cheap}); h != want {
		t.Fatalf("header %+v, want %+v", h, want)
	}
	if _, err := OpenPool(header, passphrase(t, "sesame", h.KDF)); err != nil {
		t.Fatal(err)
	}
}

// A pool changes its root without changing its keys.
func TestChangeOfRoot(t *testing.T) {
	old, now := newRoot(fixed(t, 1), nil), passphrase(t, "new", cheap)
	_, pool := CreatePool(old, NewPoolID())
	wrapped := pool.WrapSession(3, fixed(t, 7))
	header := pool.Header(now)
	if _, err := OpenPool(header, old); !errors.Is(err, ErrWrongRoot) {
		t.Errorf("the old root: %v", err)
	}
	again, err := OpenPool(header, now)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := again.UnwrapSession(3, wrapped); err != nil || s.Reveal() != fixed(t, 7).Reveal() {
		t.Errorf("a session's key after the change: %v", err)
	}
}

func TestHeaderRefusesEveryChange(t *testing.T) {
	root := passphrase(t, "sesame", cheap)
	header, _ := CreatePool(root, NewPoolID())
	known := func(err error) bool {
		return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnsupported) || errors.Is(err, ErrWrongRoot)
	}
	for i := range header {
		for _, flip := range []byte{1, 0x80, 0xff} {
			bad := bytes.Clone(header)
			bad[i] ^= flip
			if _, err := OpenPool(bad, root); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("byte %d changed: %v", i, err)
			}
			// Compatible features are ignored by who does not know them, but
			// the secret is bound to them: nobody else may set them.
			if _, err := OpenPool(reseal(bad), root); i < headerSum && !known(err) {
				t.Errorf("byte %d changed, checksum mended: %v", i, err)
			}
		}
	}
	for n := range len(header) {
		if _, err := OpenPool(header[:n], root); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	if _, err := OpenPool(append(bytes.Clone(header), 0), root); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a byte too long: %v", err)
	}
}

func TestHeaderOfNewerProgram(t *testing.T) {
	root := newRoot(fixed(t, 1), nil)
	header, _ := CreatePool(root, NewPoolID())
	for name, change := range map[string]func([]byte){
		"version":  func(h []byte) { h[8] = 2 },
		"features": func(h []byte) { h[10] = 1 },
		"root":     func(h []byte) { h[14] = 3 },
	} {
		bad := bytes.Clone(header)
		change(bad)
		if _, err := OpenPool(reseal(bad), root); !errors.Is(err, ErrUnsupported) {
			t.Errorf("unknown %s: %v", name, err)
		}
	}
}

// A header must not make a host compute for hours, nor a guess free.
func TestPassphraseParametersAreBounded(t *testing.T) {
	header, _ := CreatePool(passphrase(t, "sesame", cheap), NewPoolID())
	for name, p := range map[string]KDFParams{
		"no passes":    {Passes: 0, MemoryKiB: 8 << 10, Threads: 1},
		"passes":       {Passes: 65, MemoryKiB: 8 << 10, Threads: 1},
		"no memory":    {Passes: 1, MemoryKiB: 8<<10 - 1, Threads: 1},
		"memory":       {Passes: 1, MemoryKiB: 1<<20 + 1, Threads: 1},
		"no threads":   {Passes: 1, MemoryKiB: 8 << 10, Threads: 0},
		"many threads": {Passes: 1, MemoryKiB: 8 << 10, Threads: 65},
	} {
		if _, err := PassphraseRoot([]byte("x"), p); err == nil {
			t.Errorf("%s: derived", name)
		}
		bad := bytes.Clone(header)
		p.put(bad[headerKDF:])
		if _, err := ParsePoolHeader(reseal(bad)); !errors.Is(err, ErrCorrupt) || strings.Contains(err.Error(), "%!") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := NewKDFParams().Validate(); err != nil {
		t.Error(err)
	}
	if _, err := PassphraseRoot(nil, cheap); err == nil {
		t.Error("an empty passphrase gave a root")
	}
}

func TestRootFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	made, err := CreateRootFile(path)
	if err != nil {
		t.Fatal(err)
	}
	header, _ := CreatePool(made, NewPoolID())
	loaded, err := LoadRootFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenPool(header, loaded); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateRootFile(path); !errors.Is(err, os.ErrExist) {
		t.Fatalf("created over an existing file: %v", err)
	}
	if again, err := LoadRootFile(path); err != nil {
		t.Fatal(err)
	} else if _, err := OpenPool(header, again); err != nil {
		t.Fatalf("after a refused create: %v", err)
	}
	names, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(names) != 1 {
		t.Errorf("the directory holds %v, %v", names, err)
	}
	if _, err := LoadRootFile(path + ".not"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := LoadRootFile(filepath.Dir(path)); err == nil {
		t.Error("loaded a directory")
	}
	if _, err := CreateRootFile(filepath.Join(path, "below")); err == nil {
		t.Error("created below a file")
	}
}

func TestRootFilePermissions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	if _, err := CreateRootFile(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Fatalf("created with mode %v, %v", info.Mode(), err)
	}
	for mode, ok := range map[os.FileMode]bool{
		0o600: true, 0o400: true, 0o700: true, 0o640: false, 0o604: false, 0o620: false, 0o602: false, 0o666: false,
	} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := LoadRootFile(path)
		if ok && err != nil || !ok && (!errors.Is(err, ErrPermissions) || !strings.Contains(err.Error(), "chmod 600 "+path)) {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
}

func TestRootFileRefusesEveryChange(t *testing.T) {
	text := encodeRoot(fixed(t, 0xab))
	key := hex.EncodeToString(bytes.Repeat([]byte{0xab}, chunk.SecretBytes))
	refused := func(what string, text []byte) {
		t.Helper()
		_, err := decodeRoot(text)
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		} else if strings.Contains(err.Error(), key[:8]) {
			t.Errorf("%s: the error shows the key", what)
		}
	}
	for i := range text {
		for _, flip := range []byte{1, 0x20, 0xff} { // 0x20: the other case of a letter
			bad := bytes.Clone(text)
			bad[i] ^= flip
			refused(fmt.Sprintf("byte %d changed", i), bad)
		}
	}
	for n := range len(text) {
		refused(fmt.Sprintf("cut to %d", n), text[:n])
	}
	refused("a line more", append(bytes.Clone(text), '\n'))
	newer := bytes.Replace(text, []byte("-v1"), []byte("-v2"), 1)
	if _, err := decodeRoot(newer); !errors.Is(err, ErrUnsupported) {
		t.Errorf("version 2: %v", err)
	}
}

func TestSessionUnwrapsInItsPlaceOnly(t *testing.T) {
	root := newRoot(fixed(t, 1), nil)
	_, pool := CreatePool(root, NewPoolID())
	_, other := CreatePool(root, NewPoolID())
	secret := chunk.NewSecret()
	wrapped := pool.WrapSession(5, secret)
	if got, err := pool.UnwrapSession(5, wrapped); err != nil || got.Reveal() != secret.Reveal() {
		t.Fatalf("unwrap: %v", err)
	}
	refused := func(what string, p *Pool, key id.Key, wrapped []byte) {
		t.Helper()
		if _, err := p.UnwrapSession(key, wrapped); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("another key id", pool, 6, wrapped)
	refused("another pool", other, 5, wrapped)
	for i := range wrapped {
		bad := bytes.Clone(wrapped)
		bad[i] ^= 0x10
		refused(fmt.Sprintf("byte %d changed", i), pool, 5, bad)
	}
	for n := range len(wrapped) {
		refused(fmt.Sprintf("cut to %d", n), pool, 5, wrapped[:n])
	}
	newer := bytes.Clone(wrapped)
	newer[0] = 2
	if _, err := pool.UnwrapSession(5, newer); !errors.Is(err, ErrUnsupported) {
		t.Errorf("version 2: %v", err)
	}
	if bytes.Equal(pool.WrapSession(5, secret), wrapped) {
		t.Error("two wraps are equal: the nonce repeats")
	}
}

// The keys of a pool for different purposes are different, and stay the same.
func TestDerivedKeys(t *testing.T) {
	pool := newPool(PoolID{1}, fixed(t, 9))
	seen := map[[chunk.SecretBytes]byte]string{fixed(t, 9).Reveal(): "the secret"}
	for name, s := range map[string]*chunk.Secret{
		"fingerprints": pool.FingerprintKey(), "disk 1": pool.MACKey(1), "disk 2": pool.MACKey(2), "disk 256": pool.MACKey(256),
	} {
		if other, ok := seen[s.Reveal()]; ok {
			t.Errorf("%s has the key of %s", name, other)
		}
		seen[s.Reveal()] = name
	}
	again := newPool(PoolID{1}, fixed(t, 9))
	if again.MACKey(2).Reveal() != pool.MACKey(2).Reveal() || again.FingerprintKey().Reveal() != pool.FingerprintKey().Reveal() {
		t.Error("derived keys change")
	}
}

// Whatever prints these values prints no key: neither the bytes nor their
// usual spellings.
func TestNoKeyIsPrinted(t *testing.T) {
	key := []byte("0123456789abcdefghijklmnopqrstuv")
	secret, err := chunk.SecretFromBytes(key)
	if err != nil {
		t.Fatal(err)
	}
	root := newRoot(secret, nil)
	pool := newPool(PoolID{3}, secret)
	ring := NewRing(t.Context(), pool, nil)
	ring.secrets[4] = secret
	var out bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&out, nil))
	text := slog.New(slog.NewTextHandler(&out, nil))
	for _, v := range []any{root, *root, pool, *pool, ring, secret, root.wrapper, pool.FingerprintKey()} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		log.Info("value", "v", v)
		text.Info("value", "v", v)
		if b, err := json.Marshal(v); err == nil {
			out.Write(b)
		}
	}
	var decimal []string
	for _, b := range key[:4] {
		decimal = append(decimal, fmt.Sprint(b))
	}
	shown := strings.ToLower(out.String())
	for _, form := range []string{
		string(key[:8]), hex.EncodeToString(key[:8]), strings.Join(decimal, " "), strings.Join(decimal, ","),
		"0x30, 0x31, 0x32", "mdeymzq1",
	} {
		if strings.Contains(shown, form) {
			t.Errorf("%q is printed", form)
		}
	}
}
