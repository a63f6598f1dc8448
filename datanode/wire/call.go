package wire

import "fmt"

// Call numbers the calls of datanode.Node. Calls are never renumbered.
type Call uint8

const (
	Fence             Call = 1
	Append            Call = 2
	Sync              Call = 3
	ReadLog           Call = 4
	TrimLog           Call = 5
	DropLog           Call = 6
	WriteFragments    Call = 7
	DiscardFragments  Call = 8
	ReadFragments     Call = 9
	ListFragments     Call = 10
	Reserve           Call = 11
	Lookup            Call = 12
	Publish           Call = 13
	ListSegments      Call = 14
	SetLists          Call = 15
	CompleteIndex     Call = 16
	DescribeSegments  Call = 17
	Usage             Call = 18
	Condemn           Call = 19
	Forward           Call = 20
	Forwards          Call = 21
	Reclaim           Call = 22
	RegistryGet       Call = 23
	RegistryList      Call = 24
	RegistryCommit    Call = 25
	Status            Call = 26
	RegistryGrant     Call = 27
	RegistryKeepAlive Call = 28
	RegistryRevoke    Call = 29
	RegistryWatch     Call = 30
	JoinLog           Call = 31
	CopyLog           Call = 32
	ResetLog          Call = 33
	ReplaceSpindle    Call = 34
	AddSpindle        Call = 35
)

// callTop is above every call.
const callTop = 36

// calls says of each call what it is named and whether it changes nothing: then it
// may be carried out again, and its reply need not be kept.
var calls = [callTop]struct {
	name  string
	again bool
}{
	Fence: {"Fence", false}, Append: {"Append", false}, Sync: {"Sync", true}, ReadLog: {"ReadLog", true},
	TrimLog: {"TrimLog", false}, DropLog: {"DropLog", false},
	WriteFragments: {"WriteFragments", false}, DiscardFragments: {"DiscardFragments", false},
	ReadFragments: {"ReadFragments", true}, ListFragments: {"ListFragments", true}, Reserve: {"Reserve", false},
	Lookup: {"Lookup", false}, Publish: {"Publish", false}, ListSegments: {"ListSegments", true},
	SetLists: {"SetLists", false}, CompleteIndex: {"CompleteIndex", false}, DescribeSegments: {"DescribeSegments", true},
	Usage: {"Usage", true}, Condemn: {"Condemn", false}, Forward: {"Forward", false}, Forwards: {"Forwards", true},
	Reclaim: {"Reclaim", false}, RegistryGet: {"RegistryGet", true}, RegistryList: {"RegistryList", true},
	RegistryCommit: {"RegistryCommit", false}, Status: {"Status", true},
	RegistryGrant: {"RegistryGrant", false}, RegistryKeepAlive: {"RegistryKeepAlive", true}, RegistryRevoke: {"RegistryRevoke", false},
	RegistryWatch: {"RegistryWatch", true}, JoinLog: {"JoinLog", false}, CopyLog: {"CopyLog", false}, ResetLog: {"ResetLog", false},
	ReplaceSpindle: {"ReplaceSpindle", false}, AddSpindle: {"AddSpindle", false},
}

func (c Call) known() bool { return c > 0 && c < callTop }

func (c Call) again() bool { return calls[c].again }

func (c Call) String() string {
	if !c.known() {
		return fmt.Sprintf("call %d", uint8(c))
	}
	return calls[c].name
}

// CallSet is some of the calls.
type CallSet uint64

// Calls returns a set.
func Calls(cs ...Call) CallSet {
	var set CallSet
	for _, c := range cs {
		set |= 1 << c
	}
	return set
}

// Has reports whether the call is in the set.
func (s CallSet) Has(c Call) bool { return c.known() && s&(1<<c) != 0 }

// The sets that a server allows by default: hosts do everything, and who
// administers reads.
var (
	AllCalls  = allCalls()
	ReadCalls = Calls(ListFragments, ListSegments, DescribeSegments, Usage, Forwards, RegistryGet, RegistryList, RegistryWatch, Status)
)

func allCalls() CallSet {
	var set CallSet
	for c := range Call(callTop) {
		if c.known() {
			set |= 1 << c
		}
	}
	return set
}
