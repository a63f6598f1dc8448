package datanodetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"plinth/datanode"
	"plinth/internal/id"
)

// careless does what the contract forbids: it keeps what it is given and goes
// on using what it gave out.
type careless struct {
	datanode.Node
	kept  []datanode.Record
	found []byte
	err   error
}

func (n *careless) Append(_ context.Context, r *datanode.AppendRequest) (*datanode.AppendReply, error) {
	n.kept = r.Records
	return &datanode.AppendReply{}, n.err
}

func (n *careless) RegistryGet(context.Context, *datanode.RegistryGetRequest) (*datanode.RegistryGetReply, error) {
	return &datanode.RegistryGetReply{Value: n.found, Revision: 3}, n.err
}

func (n *careless) WriteFragments(context.Context, *datanode.WriteFragmentsRequest) (*datanode.WriteFragmentsReply, error) {
	return &datanode.WriteFragmentsReply{Errors: []*datanode.Error{nil, datanode.ErrSpindle, nil}}, n.err
}

func TestCodecFindsWhatIsKept(t *testing.T) {
	n := &careless{found: []byte("value")}
	c := Codec(n, 1)
	data := []byte("record")
	r := &datanode.AppendRequest{Disk: 1, Epoch: 1, Records: []datanode.Record{{Pos: 7, Data: data}}}
	if _, err := c.Append(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if string(data) != "record" || r.Records[0].Pos != 7 {
		t.Errorf("the caller's request was changed: %+v", r)
	}
	if !bytes.Equal(n.kept[0].Data, bytes.Repeat([]byte{poison}, 6)) || n.kept[0].Pos == 7 || n.kept[0].MAC[15] != poison {
		t.Errorf("the kept request still reads %+v", n.kept[0])
	}
	got, err := c.RegistryGet(t.Context(), &datanode.RegistryGetRequest{Key: "k"})
	if err != nil || string(got.Value) != "value" || got.Revision != 3 {
		t.Fatalf("got %+v, %v", got, err)
	}
	if n.found[0] != poison {
		t.Error("what the node gave out still reads as before")
	}
}

func TestCodecCarriesErrors(t *testing.T) {
	n := &careless{}
	c := Codec(n, 1)
	for _, sent := range []error{datanode.ErrLogFull, datanode.Errorf(datanode.ErrFenced, "disk %d", 4), io.ErrUnexpectedEOF} {
		n.err = sent
		_, err := c.Append(t.Context(), &datanode.AppendRequest{})
		want := datanode.AsError(sent)
		var got *datanode.Error
		if !errors.As(err, &got) || *got != *want || err == sent {
			t.Errorf("sent %v, got %v", sent, err)
		}
	}
	if datanode.ErrLogFull.Text != "log is full" {
		t.Error("the package's own error was overwritten")
	}
	ended, end := context.WithCancel(t.Context())
	end()
	n.err = ended.Err()
	if _, err := c.Append(ended, &datanode.AppendRequest{}); err != context.Canceled {
		t.Errorf("the context's error became %v", err)
	}
	n.err = nil
	reply, err := c.WriteFragments(t.Context(), &datanode.WriteFragmentsRequest{})
	if err != nil || len(reply.Errors) != 3 || reply.Errors[0] != nil || reply.Errors[2] != nil ||
		!errors.Is(reply.Errors[1], datanode.ErrSpindle) {
		t.Errorf("fragments' errors %v, %v", reply, err)
	}
}

// Calls that are under way together do not all finish in the order in which
// they began.
func TestCodecReorders(t *testing.T) {
	c := Codec(&careless{}, 5)
	var mu sync.Mutex
	var order []int
	var running sync.WaitGroup
	for i := range 200 {
		running.Go(func() {
			_, _ = c.WriteFragments(t.Context(), &datanode.WriteFragmentsRequest{Header: datanode.SegmentHeader{Segment: id.Segment(i)}})
			mu.Lock()
			order = append(order, i)
			mu.Unlock()
		})
	}
	running.Wait()
	overtaken := 0
	for i := 1; i < len(order); i++ {
		if order[i] < order[i-1] {
			overtaken++
		}
	}
	if overtaken == 0 {
		t.Error("200 calls at once finished in order")
	}
}
