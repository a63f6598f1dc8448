package wire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"reflect"
	"runtime"
	"testing"

	"plinth/datanode"
)

// message is one kind of message, for tests of all of them.
type message struct {
	name  string
	parse func(t *testing.T, data []byte)
	draw  func(t *testing.T, rng *rand.Rand) []byte
}

func of[T any](visit func(*coder, *T)) message {
	encode := func(t *testing.T, v *T) []byte {
		t.Helper()
		size := coder{pass: sizing}
		visit(&size, v)
		c := coder{pass: encoding, buf: make([]byte, size.off)}
		visit(&c, v)
		if size.err != nil || c.err != nil || c.off != size.off {
			t.Fatalf("%T: sized %d, encoded %d, errors %v, %v", v, size.off, c.off, size.err, c.err)
		}
		return c.buf
	}
	return message{
		name: reflect.TypeFor[T]().Name(),
		parse: func(t *testing.T, data []byte) {
			var v T
			if _, err := decode(data, &v, visit); err != nil {
				return
			}
			if again := encode(t, &v); !bytes.Equal(again, data) {
				t.Errorf("%T was decoded from %x and encoded as %x", v, data, again)
			}
		},
		draw: func(t *testing.T, rng *rand.Rand) []byte {
			var v, got T
			fill(reflect.ValueOf(&v).Elem(), rng)
			data := encode(t, &v)
			if _, err := decode(data, &got, visit); err != nil {
				t.Fatalf("%+v: %v", v, err)
			}
			if !reflect.DeepEqual(v, got) {
				t.Errorf("sent %+v, got %+v", v, got)
			}
			return data
		},
	}
}

var messages = []message{
	of(fenceRequest), of(fenceReply), of(appendRequest), of(appendReply), of(syncRequest), of(readLogRequest), of(readLogReply),
	of(trimLogRequest), of(dropLogRequest), of(joinLogRequest), of(joinLogReply), of(copyLogRequest), of(resetLogRequest),
	of(writeFragmentsRequest), of(writeFragmentsReply), of(discardFragmentsRequest),
	of(readFragmentsRequest), of(readFragmentsReply), of(listFragmentsRequest), of(listFragmentsReply), of(reserveRequest),
	of(lookupRequest), of(lookupReply), of(publishRequest), of(listSegmentsRequest), of(listSegmentsReply), of(setListsRequest),
	of(setListsReply), of(completeIndexRequest), of(describeSegmentsRequest), of(describeSegmentsReply), of(usageRequest),
	of(usageReply), of(condemnRequest), of(condemnReply), of(forwardRequest), of(forwardsRequest), of(forwardsReply),
	of(reclaimRequest), of(reclaimReply), of(registryGetRequest), of(registryGetReply), of(registryListRequest),
	of(registryListReply), of(registryTxn), of(registryCommitReply), of(registryGrantRequest), of(registryGrantReply), of(registryKeepAliveRequest),
	of(registryRevokeRequest), of(registryWatchRequest), of(registryWatchReply), of(status), of(mistake), of(visitHello), of(visitWelcome),
}

// fill draws a value: lists and texts are short or empty, the rest is anything.
func fill(v reflect.Value, rng *rand.Rand) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Field(i)
			if !f.CanSet() { // the handshake's
				f = reflect.NewAt(f.Type(), f.Addr().UnsafePointer()).Elem()
			}
			if v.Type().Field(i).Name != "Into" {
				fill(f, rng)
			}
		}
	case reflect.Pointer:
		if rng.IntN(2) == 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), rng)
		}
	case reflect.Slice:
		if n := rng.IntN(4); n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				fill(v.Index(i), rng)
			}
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), rng)
		}
	case reflect.String:
		b := make([]byte, rng.IntN(5))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		v.SetString(string(b))
	case reflect.Bool:
		v.SetBool(rng.IntN(2) == 0)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(rng.Uint64() >> (64 - v.Type().Bits()))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(rng.Uint64()))
	default:
		panic(v.Type())
	}
}

// What is decoded is what was encoded.
func TestMessagesRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, m := range messages {
		t.Run(m.name, func(t *testing.T) {
			for range 200 {
				m.draw(t, rng)
			}
		})
	}
}

// A message that is cut short, or has more than it should, is refused.
func TestMessagesRefuseOtherLengths(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		var v, got datanode.PublishRequest
		fill(reflect.ValueOf(&v).Elem(), rng)
		f, err := compose(header{call: Publish}, 0, &v, publishRequest, false)
		if err != nil {
			t.Fatal(err)
		}
		whole := f.message()
		for n := range whole {
			if _, err := decode(whole[:n], &got, publishRequest); err == nil {
				t.Fatalf("%d of %d bytes were taken", n, len(whole))
			}
		}
		if _, err := decode(append(bytes.Clone(whole), 0), &got, publishRequest); err == nil {
			t.Fatal("a byte too many was taken")
		}
	}
}

// Any bytes are a message, which is then encoded as it was, or are refused; and
// no more is allocated than their length accounts for.
func FuzzMessages(f *testing.F) {
	rng := rand.New(rand.NewPCG(5, 6))
	for i, m := range messages {
		f.Add(uint8(i), m.draw(&testing.T{}, rng))
		f.Add(uint8(i), bytes.Repeat([]byte{0xff}, 64))
	}
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		m := messages[int(which)%len(messages)]
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m.parse(t, data)
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<10+64*uint64(len(data)) {
			t.Errorf("%s: %d bytes allocated for a message of %d", m.name, grown, len(data))
		}
	})
}

// The frame reader takes frames of known kinds within their bounds, and takes
// memory only after it was allowed to.
func FuzzFrames(f *testing.F) {
	good := composeEmpty(header{kind: kindPing})
	f.Add(append(bytes.Clone(good.buf), composeError(header{kind: kindGoodbye}, datanode.ErrClosed).buf...))
	b := make([]byte, 40)
	header{length: 24, kind: kindRequest, call: Append, slot: 3, seq: 9}.put(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, data []byte) {
		in := bufio.NewReaderSize(bytes.NewReader(data), 4096)
		read := 0
		for {
			var asked header
			f, h, err := readFrame(in, func(h header) (func(*frame), error) {
				if int(h.length) > len(data) {
					return nil, bufio.ErrBufferFull
				}
				asked = h
				return nil, nil
			})
			if err != nil {
				return
			}
			if h != asked || len(f.message()) != int(h.length) || f.header() != h {
				t.Fatalf("asked for %+v, got %+v with %d bytes", asked, h, len(f.message()))
			}
			if !bytes.Equal(f.buf, data[read:read+len(f.buf)]) {
				t.Fatal("the frame has other bytes")
			}
			read += len(f.buf)
			f.release()
		}
	})
}

// The handshake takes no more than its bound, skips what a later version adds,
// and leaves what follows it alone.
func FuzzHandshake(f *testing.F) {
	var b bytes.Buffer
	_ = putGreeting(&b, helloMagic, &hello{versions: versions{1, 2}, name: "n"}, visitHello)
	f.Add(b.Bytes())
	f.Add(append([]byte(helloMagic), 0xff, 0xff, 0xff, 0xff))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		var h hello
		if err := getGreeting(r, helloMagic, &h, visitHello); err != nil {
			return
		}
		n := int(binary.LittleEndian.Uint32(data[len(helloMagic):]))
		if used := len(data) - r.Len(); used != len(helloMagic)+4+n {
			t.Fatalf("%d bytes used of a handshake of %d", used, n)
		}
		var b bytes.Buffer
		if err := putGreeting(&b, helloMagic, &h, visitHello); err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(data[len(helloMagic)+4:], b.Bytes()[len(helloMagic)+4:]) {
			t.Fatal("the handshake is encoded otherwise than it was received")
		}
		var w welcome
		_ = getGreeting(bytes.NewReader(append([]byte(welcomeMagic), data[len(helloMagic):]...)), welcomeMagic, &w, visitWelcome)
	})
}
