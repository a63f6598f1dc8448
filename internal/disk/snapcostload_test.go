//go:build synthetic

package disk

import (
	"iter"

	"plinth/blockmap"
)

func init() {
	loadRows = func(m *blockmap.Map, rows iter.Seq[costRow]) error {
		return m.Load(func(yield func(blockmap.Row) bool) {
			for r := range rows {
				if !yield(blockmap.Row(r)) {
					return
				}
			}
		})
	}
}
