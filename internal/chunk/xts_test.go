package chunk

import (
	"bytes"
	"crypto/aes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"

	refxts "golang.org/x/crypto/xts"
)

// The XTS-AES-256 vectors of IEEE 1619, annex B (10 to 14): one key, the bytes
// 0 to 255 twice, five data units; of each ciphertext the first and last
// blocks. Block 32's tweak went through every step before it.
func TestXTSVectors(t *testing.T) {
	key := unhex(t, "2718281828459045235360287471352662497757247093699959574966967627"+
		"3141592653589793238462643383279502884197169399375105820974944592")
	plain := make([]byte, 512)
	for i := range plain {
		plain[i] = byte(i)
	}
	for _, v := range []struct {
		unit        uint64
		first, last string
	}{
		{0xff, "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b", "4f36ffda9fcea70b9c6e693e148c151"},
		{0xffff, "77a31251618a15e6b92d1d66dffe7b50b50bad552305ba0217a610688eff7e11", "27b42af8100cb9d59cef9645803"},
		{0xffffff, "e387aaa58ba483afa7e8eb469778317ecf4cf573aa9d4eac23f2cdf914e4e200", "2dd6888c309f5a7d712826"},
		{0xffffffff, "bf53d2dade78e822a4d949a9bc6766b01b06a8ef70d26748c6a7fc36d80ae4c5", "abb152c4a93411373aaa8220"},
		{0xffffffffff, "64497e5a831e4a932c09be3e5393376daa599548b816031d224bbf50a818ed23", "ad5b0d59631c531f6a0a57b9"},
	} {
		x := newXTS((*[xtsKeyBytes]byte)(key))
		var batch [tweakBytes]byte
		got := make([]byte, len(plain))
		x.encrypt(got, plain, v.unit, &batch)
		text := hex.EncodeToString(got)
		if text[:len(v.first)] != v.first || text[len(text)-len(v.last):] != v.last {
			t.Errorf("data unit %x: got %s", v.unit, text)
		}
		x.decrypt(got, got, v.unit, &batch)
		if !bytes.Equal(got, plain) {
			t.Errorf("data unit %x does not decrypt", v.unit)
		}
	}
}

// Byte for byte what golang.org/x/crypto/xts gives, below, at and above the
// borders of a batch of tweaks.
func TestXTSAgainstReference(t *testing.T) {
	rng := rand.NewChaCha8([32]byte{1})
	var key [xtsKeyBytes]byte
	var batch [tweakBytes]byte
	for _, n := range []int{16, 32, 48, 512, 4080, 4096, 4112, 8192, 8208, 65520, 65536} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			rng.Read(key[:])
			ref, err := refxts.NewCipher(aes.NewCipher, key[:])
			if err != nil {
				t.Fatal(err)
			}
			x := newXTS(&key)
			plain, got, want := make([]byte, n), make([]byte, n), make([]byte, n)
			rng.Read(plain)
			sector := rng.Uint64()
			ref.Encrypt(want, plain, sector)
			x.encrypt(got, plain, sector, &batch)
			if !bytes.Equal(got, want) {
				t.Fatal("ciphertexts differ")
			}
			x.decrypt(got, want, sector, &batch)
			if !bytes.Equal(got, plain) {
				t.Fatal("does not decrypt into another buffer")
			}
			x.encrypt(got, got, sector, &batch)
			if !bytes.Equal(got, want) {
				t.Fatal("does not encrypt in place")
			}
		})
	}
}

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
