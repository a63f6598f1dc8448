package datanodetest

import (
	"bytes"
	"context"
	"encoding/gob"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"

	"plinth/datanode"
)

// poison fills what a node must not keep and a caller must not see.
const poison = 0xDB

// delayMax is the longest that a call, or its reply, is held back.
const delayMax = 2 * time.Millisecond

// Codec returns node as a caller at the other end of a wire would see it. Each
// request and reply crosses as bytes, so that the two share nothing; errors
// cross as code and text. What the node was given is overwritten as soon as the
// call returns, and so is what it returned once that has been sent: a node that
// keeps a request's slice, or gives out memory that it goes on using, corrupts
// itself at once. Some calls and some replies wait up to 2 ms, drawn from seed,
// so that concurrent ones overtake each other.
//
// It starts no goroutine and may be used by many.
func Codec(node datanode.Node, seed uint64) datanode.Node {
	return &codec{node: node, rng: rand.New(rand.NewPCG(seed, 0))}
}

type codec struct {
	node datanode.Node

	mu  sync.Mutex
	rng *rand.Rand
}

// delay waits, one time in eight.
func (c *codec) delay() {
	c.mu.Lock()
	wait := time.Duration(0)
	if c.rng.IntN(8) == 0 {
		wait = time.Duration(c.rng.Int64N(int64(delayMax)))
	}
	c.mu.Unlock()
	if wait > 0 {
		time.Sleep(wait)
	}
}

// exchange carries one call over. Wire turns the node's reply into something
// that gob can carry.
func exchange[Request, Reply, Wire any](ctx context.Context, c *codec, request *Request,
	call func(context.Context, *Request) (Reply, error), wire func(Reply) Wire) (Wire, error) {
	sent := encode(request)
	c.delay()
	private := new(Request)
	decode(sent, private)
	reply, err := call(ctx, private)
	overwrite(reflect.ValueOf(private).Elem())
	var none Wire
	if err != nil {
		err = errorAcross(ctx, err)
		c.delay()
		return none, err
	}
	w := wire(reply)
	answer := encode(&w)
	if v := reflect.ValueOf(&reply).Elem(); v.Kind() == reflect.Pointer {
		overwrite(v.Elem())
	}
	c.delay()
	decode(answer, &none)
	return none, nil
}

// errorAcross is what a caller gets of a node's error: the context's as it is,
// since the caller knows that itself, and all others by code and text.
func errorAcross(ctx context.Context, err error) error {
	if ctx.Err() != nil && reflect.TypeOf(err) != reflect.TypeFor[*datanode.Error]() {
		return ctx.Err()
	}
	got := new(datanode.Error)
	decode(encode(datanode.AsError(err)), got)
	return got
}

// ask is exchange for replies that gob carries as they are.
func ask[Request, Reply any](ctx context.Context, c *codec, request *Request,
	call func(context.Context, *Request) (*Reply, error)) (*Reply, error) {
	reply, err := exchange(ctx, c, request, call, func(r *Reply) Reply { return *r })
	if err != nil {
		return nil, err
	}
	return &reply, nil
}

// tell is exchange for calls without a reply.
func tell[Request any](ctx context.Context, c *codec, request *Request, call func(context.Context, *Request) error) error {
	_, err := exchange(ctx, c, request,
		func(ctx context.Context, r *Request) (bool, error) { return true, call(ctx, r) },
		func(ok bool) bool { return ok })
	return err
}

// encode and decode cannot fail but for a message that is not plain data.
func encode(v any) []byte {
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(v); err != nil {
		panic(fmt.Sprintf("%T does not cross a wire: %v", v, err))
	}
	return b.Bytes()
}

func decode(b []byte, v any) {
	if err := gob.NewDecoder(bytes.NewReader(b)).Decode(v); err != nil {
		panic(fmt.Sprintf("%T does not cross a wire: %v", v, err))
	}
}

// overwrite poisons a message in place, through its slices. What pointers lead
// to stays: those are errors, which may be the package's own.
func overwrite(v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			overwrite(v.Field(i))
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			b := v.Bytes()
			for i := range b {
				b[i] = poison
			}
			return
		}
		for i := range v.Len() {
			overwrite(v.Index(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			overwrite(v.Index(i))
		}
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		v.SetUint(0xDBDBDBDBDBDBDBDB >> (64 - v.Type().Bits()))
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Int:
		v.SetInt(0x5BDBDBDBDBDBDBDB >> (64 - v.Type().Bits()))
	case reflect.String:
		v.SetString("\xdb\xdb\xdb\xdb")
	}
}
