package nbdtest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"plinth/nbd"
	"plinth/nbd/client"
	"plinth/nbd/internal/wire"
)

func checkRead(ctx context.Context, t *testing.T, c *client.Client, off int64, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if err := c.ReadAt(ctx, got, off); err != nil {
		t.Error(err)
	} else if !bytes.Equal(got, want) {
		t.Errorf("%d bytes at %d are not what was written", len(want), off)
	}
}

func write(ctx context.Context, t *testing.T, c *client.Client, off int64, p []byte) {
	t.Helper()
	if err := c.WriteAt(ctx, p, off, false); err != nil {
		t.Error(err)
	}
}

// Ranges that reach beyond the end are refused, and change nothing.
func (s suite) beyondEnd(t *testing.T) {
	ctx, c := s.context(t), s.open(t, s.Export)
	size, tail := c.Size(), pattern(512, 2)
	write(ctx, t, c, size-512, tail)
	for _, off := range []int64{size - 511, size, size + 1, size + 1<<40, 1<<63 - 512, -512, -1} {
		if err := c.ReadAt(ctx, make([]byte, 512), off); !errors.Is(err, nbd.EINVAL) {
			t.Errorf("read at size%+d: %v", off-size, err)
		}
		if err := c.WriteAt(ctx, pattern(512, 3), off, false); !errors.Is(err, nbd.ENOSPC) && !errors.Is(err, nbd.EINVAL) {
			t.Errorf("write at size%+d: %v", off-size, err)
		}
	}
	checkRead(ctx, t, c, size-512, tail)
}

// Zeroed ranges read as zeros, with and without a hole, and leave their
// neighbours alone.
func (s suite) zero(t *testing.T) {
	ctx, c := s.context(t), s.open(t, s.Export)
	if c.Info().Flags&wire.FlagSendWriteZeroes == 0 {
		return
	}
	for _, mayTrim := range []bool{false, true} {
		data := pattern(1<<20, 4)
		write(ctx, t, c, 0, data)
		for _, r := range [][2]int64{{1, 1}, {4096, 4096}, {10000, 300001}, {1<<20 - 5, 5}} {
			if err := c.Zero(ctx, r[0], r[1], mayTrim, true); err != nil {
				t.Error(err)
			}
			clear(data[r[0] : r[0]+r[1]])
		}
		checkRead(ctx, t, c, 0, data)
	}
}

// What is said to be zeros is, what was written is not, and nothing is left
// out.
func (s suite) extents(t *testing.T) {
	ctx, c := s.context(t), s.open(t, s.Export)
	if c.Form() == client.Simple {
		return
	}
	const at, n = 40 << 20, 1 << 20
	if c.Info().Flags&wire.FlagSendTrim != 0 {
		if err := c.Trim(ctx, 0, c.Size(), false); err != nil {
			t.Error(err)
		}
	}
	write(ctx, t, c, at, pattern(n, 7))
	var off int64
	err := c.Extents(ctx, 0, c.Size(), func(e nbd.Extent) bool {
		if e.Zero && off < at+n && at < off+e.N {
			t.Errorf("%d bytes at %d are no zeros", e.N, off)
		} else if k := min(e.N, 1<<20); e.Zero {
			checkRead(ctx, t, c, off, make([]byte, k))
			checkRead(ctx, t, c, off+e.N-k, make([]byte, k))
		}
		off += e.N
		return true
	})
	if err != nil || off != c.Size() {
		t.Errorf("extents of %d bytes of %d: %v", off, c.Size(), err)
	}
	if _, err := c.BlockStatus(ctx, 1, c.Size(), false); !errors.Is(err, nbd.EINVAL) && c.Info().Form == client.Extended {
		t.Errorf("block status beyond the end: %v", err)
	}
	checkRead(ctx, t, c, at, pattern(n, 7))
}

// randomBytes is the part of the device that random works on, and keeps a
// model of.
const randomBytes = 2 << 20

// Random requests at any byte, against a model.
func (s suite) random(t *testing.T) {
	ctx, c := s.context(t), s.open(t, s.Export)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	flags := c.Info().Flags
	model := pattern(randomBytes, seed)
	write(ctx, t, c, 0, model)
	for i := 0; i < 400 && !t.Failed(); i++ {
		off := rng.Int64N(randomBytes)
		n := min(1+rng.Int64N(1<<rng.IntN(18)), randomBytes-off)
		fua := rng.IntN(4) == 0 && flags&(wire.FlagSendFUA|wire.FlagSendFlush) != 0
		var err error
		switch k := rng.IntN(10); {
		case k < 4:
			checkRead(ctx, t, c, off, model[off:off+n])
		case k < 8:
			p := pattern(int(n), rng.Uint64())
			err = c.WriteAt(ctx, p, off, fua)
			copy(model[off:], p)
		case k == 8 && flags&wire.FlagSendWriteZeroes != 0:
			err = c.Zero(ctx, off, n, rng.IntN(2) == 0, fua)
			clear(model[off : off+n])
		case k == 9 && flags&wire.FlagSendTrim != 0:
			// What a trimmed range reads as is open; so it is written next.
			err = errors.Join(c.Trim(ctx, off, n, fua), c.WriteAt(ctx, model[off:off+n], off, fua))
		case flags&wire.FlagSendFlush != 0:
			err = c.Flush(ctx)
		}
		if err != nil {
			t.Error(err)
		}
	}
	checkRead(ctx, t, c, 0, model)
}

// Many calls on one connection: each reply reaches its own call.
func (s suite) inFlight(t *testing.T) {
	ctx, c := s.context(t), s.open(t, s.Export)
	exchange(ctx, t, []*client.Client{c}, 32)
}

// A write whose reply has come is seen by every connection, where the server
// says that connections may share the export.
func (s suite) connections(t *testing.T) {
	ctx, first := s.context(t), s.open(t, s.Export)
	if !first.Info().MultiConn() {
		return
	}
	exchange(ctx, t, []*client.Client{first, s.open(t, s.Export), s.open(t, s.Export), s.open(t, s.Export)}, 8)
}

// exchange has goroutines of each client write ranges of their own, and read
// them back through the next client.
func exchange(ctx context.Context, t *testing.T, clients []*client.Client, goroutines int) {
	const each = 256 << 10
	var wg sync.WaitGroup
	for i := range len(clients) * goroutines {
		writer, reader := clients[i%len(clients)], clients[(i+1)%len(clients)]
		wg.Go(func() {
			base := int64(i) * each
			for round := range 8 {
				n := []int{1, 511, 4096, 4097, 65536, 200001}[(i+round)%6]
				p := pattern(n, uint64(i*100+round))
				write(ctx, t, writer, base+int64(round), p)
				checkRead(ctx, t, reader, base+int64(round), p)
			}
			if writer.Info().Flags&wire.FlagSendFlush != 0 {
				if err := writer.Flush(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

var longestPattern = sync.OnceValue(func() []byte { return pattern(nbd.PayloadBytesMax, 5) })

// The longest payload that every server must take, at an odd offset.
func (s suite) longest(t *testing.T) {
	ctx, c := s.context(t), s.open(t, s.Export)
	p := longestPattern()
	write(ctx, t, c, 4097, p)
	checkRead(ctx, t, c, 4097, p)
}

// DISC is answered by hanging up after what was in flight; the export can be
// opened again and has kept what was written.
func (s suite) disconnect(t *testing.T) {
	ctx := s.context(t)
	p := pattern(5000, 6)
	c := s.open(t, s.Export)
	if err := c.WriteAt(ctx, p, 123, false); err != nil {
		t.Fatal(err)
	}
	if err := c.Disconnect(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, client.ErrClosed) {
		t.Errorf("read after Disconnect: %v", err)
	}
	checkRead(ctx, t, s.open(t, s.Export), 123, p)
}
