package etcd

import (
	"bytes"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"plinth/datanode"
)

func FuzzDecode(f *testing.F) {
	f.Add([]byte(encodeEntry([]byte("value"), 7)))
	f.Add([]byte(encodeEntry(nil, 0)))
	f.Add([]byte(encodeLease(time.Minute)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if value, lease, err := decodeEntry(&mvccpb.KeyValue{Value: b}); err == nil {
			if again := encodeEntry(value, lease); !bytes.Equal([]byte(again), b) {
				t.Fatalf("%x became %x", b, again)
			}
		}
		if ttl, err := decodeLease(b); err == nil {
			if again := encodeLease(ttl); again != string(b) || ttl < datanode.LeaseTTLMin || ttl > datanode.LeaseTTLMax {
				t.Fatalf("%x became %x", b, again)
			}
		}
	})
}

func TestOptions(t *testing.T) {
	good := Options{Endpoints: []string{"127.0.0.1:1"}, Pool: "a-1", Insecure: true}
	if o, err := good.withDefaults(); err != nil || o.Timeout != timeoutDefault || o.Poll != pollDefault || o.Logger == nil {
		t.Fatalf("%+v, %v", o, err)
	}
	for what, change := range map[string]func(*Options){
		"no endpoint": func(o *Options) { o.Endpoints = nil }, "too many": func(o *Options) { o.Endpoints = make([]string, endpointMax+1) },
		"no pool": func(o *Options) { o.Pool = "" }, "a path": func(o *Options) { o.Pool = "a/b" }, "no TLS": func(o *Options) { o.Insecure = false },
		"less than no time": func(o *Options) { o.Timeout = -1 }, "less than no poll": func(o *Options) { o.Poll = -1 },
	} {
		bad := good
		change(&bad)
		if _, err := bad.withDefaults(); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
}
