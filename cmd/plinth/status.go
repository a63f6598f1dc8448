package main

import (
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"plinth/datanode"
	"plinth/internal/api"
	"plinth/internal/host"
	"plinth/internal/ramcache"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "show the pool, its space and what needs attention", Flags: apiFlags(), Action: showStatus,
	}
}

func showStatus(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		s, err := client.Status(c.Context)
		if err != nil {
			return err
		}
		if c.Bool("json") {
			return printJSON(s)
		}
		return printStatus(s)
	})
}

// hostsText names the hosts, with what they serve.
func hostsText(s *host.Status) string {
	var all []string
	for _, h := range s.Hosts {
		text := h.Name + ": " + plural(h.Disks, "disk")
		if h.Warden {
			text += ", reclaims"
		}
		if h.Name == s.Host {
			text += " (this one)"
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

func printStatus(s *host.Status) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	ok := 0
	for _, sp := range s.Node.Spindles {
		if sp.State == datanode.SpindleOK {
			ok++
		}
	}
	index := "complete"
	if !s.Node.Index.Complete {
		index = "incomplete"
	}
	sp := s.Space
	rows := [][2]string{
		{"pool", s.PoolID},
		{"spindles", fmt.Sprintf("%d of %d ok, stripes of %s", ok, len(s.Node.Spindles), s.Geometry)},
		{"log", fmt.Sprintf("%s of %s in use", formatSize(s.Node.Log.UsedBytes), formatSize(s.Node.Log.CapacityBytes))},
		{"index", fmt.Sprintf("%s, %d segments, %d fingerprints", index, s.Node.Index.Segments, s.Node.Index.Fingerprints)},
		{"cpu", formatCPU(&s.CPU)},
		{"logical", formatSize(sp.LogicalBytes) + "  mapped by disks, as of their last pass"},
		{"unique", formatSize(sp.UniqueBytes) + ratio("  after deduplication", sp.LogicalBytes, sp.UniqueBytes)},
		{"compressed", formatSize(sp.CompressedBytes) + ratio("  after compression and encryption", sp.UniqueBytes, sp.CompressedBytes)},
		{"stored", formatSize(sp.StoredBytes) + "  with parity, headers and " + formatSize(sp.CheckpointBytes) + " of checkpoints"},
		{"free", formatSize(sp.FreeBytes) + " of " + formatSize(sp.CapacityBytes) + ", parity included"},
		{"buffered", formatSize(sp.BufferedBytes) + "  acknowledged, not yet destaged"},
	}
	if s.Scrub.Pass != nil {
		rows = append(rows, [2]string{"scrub", scrubText(&s.Scrub)})
	}
	if s.Rebuild.Began != nil {
		rows = append(rows, [2]string{"rebuild", rebuildText(&s.Rebuild)})
	}
	if r := s.RAMCache; r.BytesMax > 0 {
		rows = append(rows, [2]string{"RAM cache", ramText(r)})
	}
	if f := s.Flash; f != nil {
		rows = append(rows, [2]string{"flash cache", flashText(f)})
	}
	if l := s.Lending; l != nil && (l.Asked > 0 || l.LentChunks > 0) {
		rows = append(rows, [2]string{"other flash", lendingText(l)})
	}
	if len(s.Nodes) > 1 {
		rows = append(rows, [2]string{"data nodes", nodesText(s)})
	}
	if len(s.Hosts) > 1 {
		rows = append(rows, [2]string{"hosts", hostsText(s)})
	}
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\n", r[0], r[1])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(s.Disks) > 0 {
		fmt.Println()
		if err := printDisks(s.Disks); err != nil {
			return err
		}
	}
	if len(s.Warnings) > 0 {
		fmt.Printf("\nneeds attention:\n  %s\n", strings.Join(s.Warnings, "\n  "))
	}
	return nil
}

// scrubText says how far the scrub is and what it has found.
func scrubText(x *host.ScrubStatus) string {
	p := x.Pass
	text := fmt.Sprintf("%.0f %% since %s", 100*x.Progress, p.Began.Format(time.DateOnly))
	if p.Ended != nil {
		text = "ended " + p.Ended.Format(time.DateOnly)
	}
	return fmt.Sprintf("%s, %d damaged fragments found, %d mended", text, p.DamagedFragments(), p.Repaired)
}

// rebuildText says how far the rebuild is.
func rebuildText(x *host.RebuildStatus) string {
	done := fmt.Sprintf("%d fragments, %s", x.Fragments, formatSize(x.Bytes))
	if x.Ended != nil {
		return fmt.Sprintf("ended %s, %s restored on spindles %v", x.Ended.Format(time.DateOnly), done, x.Restored)
	}
	share := 100 * float64(x.Bytes) / float64(max(x.Bytes+x.BytesLeft, 1))
	text := fmt.Sprintf("%.0f %%, %s restored, about %d fragments, %s left", share, done, x.FragmentsLeft, formatSize(x.BytesLeft))
	if n := x.HostsAtIt(); n > 1 {
		text += fmt.Sprintf(", %d hosts at it", n)
	}
	return text
}

// ramText says how full the RAM cache is and how often it helped.
func ramText(r ramcache.Stats) string {
	text := fmt.Sprintf("%s of %s in use", formatSize(r.Bytes), formatSize(r.BytesMax))
	if n := r.Hits + r.Misses; n > 0 {
		text += fmt.Sprintf(", %.0f %% of %d pages hit", float64(r.Hits)*100/float64(n), n)
	}
	return text
}

// flashText says how full the flash cache is and how often it helped.
func flashText(f *host.FlashStatus) string {
	if f.Failure != "" {
		return "off"
	}
	text := fmt.Sprintf("%s of %s in use, %d chunks", formatSize(f.UsedBytes), formatSize(f.CapacityBytes), f.Chunks)
	if f.Loading {
		text += ", looking for more"
	}
	if n := f.Hits + f.Misses; n > 0 {
		text += fmt.Sprintf(", %.0f %% of %d reads hit", float64(f.Hits)*100/float64(n), n)
	}
	return text
}

// lendingText says what came from other hosts' flash, and what went to them.
func lendingText(l *host.LendingStatus) string {
	var parts []string
	if l.Asked > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d chunks came from another host, %s", l.Here, l.Asked, formatSize(l.Bytes)))
	}
	if l.LentChunks > 0 {
		parts = append(parts, fmt.Sprintf("%d went to others, %s", l.LentChunks, formatSize(l.LentBytes)))
	}
	return strings.Join(parts, "; ")
}

// ratio adds how many times smaller something became.
func ratio(text string, before, after int64) string {
	if before <= 0 || after <= 0 {
		return text
	}
	return fmt.Sprintf("%s, 1:%.2f", text, float64(before)/float64(after))
}
