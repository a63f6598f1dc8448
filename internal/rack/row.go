package rack

import (
	"encoding/hex"
	"encoding/json"
	"fmt"

	"plinth/internal/id"
	"plinth/internal/logset"
)

// rowVersion is the version of log sets' rows. See docs/format/disk.md.
const rowVersion = 1

const logSetPrefix = "logset/"

// rowKey is where the registry has a disk's log set.
func rowKey(d id.Disk) string { return fmt.Sprintf("%s%016x", logSetPrefix, uint64(d)) }

type jsonRow struct {
	Version int          `json:"version"`
	InSync  []jsonMember `json:"in_sync"`
}

type jsonMember struct {
	Node id.Node `json:"node"`
	Boot string  `json:"boot"`
}

func marshalRow(row logset.Row) []byte {
	j := jsonRow{Version: rowVersion}
	for _, m := range row {
		j.InSync = append(j.InSync, jsonMember{m.Node, hex.EncodeToString(m.Boot[:])})
	}
	b, err := json.Marshal(j)
	if err != nil {
		panic(err) // numbers and hexadecimals
	}
	return b
}

// ParseRow reads the row of a disk's log set.
func ParseRow(b []byte) (logset.Row, error) {
	var j jsonRow
	if err := json.Unmarshal(b, &j); err != nil {
		return nil, fmt.Errorf("log set: %w", err)
	}
	if j.Version != rowVersion {
		return nil, fmt.Errorf("log set of version %d: a newer program wrote it", j.Version)
	}
	if len(j.InSync) == 0 {
		return nil, fmt.Errorf("log set without nodes")
	}
	var row logset.Row
	for _, m := range j.InSync {
		boot, err := hex.DecodeString(m.Boot)
		if err != nil || len(boot) != len(logset.Boot{}) || row.Has(m.Node) {
			return nil, fmt.Errorf("log set: node %d with boot id %q", m.Node, m.Boot)
		}
		row = append(row, logset.Member{Node: m.Node, Boot: logset.Boot(boot)})
	}
	return row, nil
}
