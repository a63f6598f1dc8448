package main

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"plinth/internal/api"
	"plinth/internal/host"
)

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name: "verify", Usage: "walk every map, segment and list and read every chunk; exit status 1 if anything is wrong",
		Flags: append(apiFlags(),
			&cli.BoolFlag{Name: "repair", Usage: "rewrite damaged fragments whose content is beyond doubt"},
			&cli.BoolFlag{Name: "leaks", Usage: "find what nobody needs, too; wrong only after plinth reclaim --full on quiet disks"},
		),
		Action: verifyAll,
	}
}

func verifyAll(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	return call(c, func(client *api.Client) error {
		bar := newProgress("verify")
		r, err := client.Verify(c.Context, host.VerifyOptions{Repair: c.Bool("repair"), Strict: c.Bool("leaks"), Progress: bar.show})
		bar.end()
		if err != nil {
			return err
		}
		if c.Bool("json") {
			err = printJSON(r)
		} else {
			printReport(r)
		}
		if err == nil && !r.OK() {
			err = errReported
		}
		return err
	})
}

func printReport(r *host.VerifyReport) {
	for _, f := range r.Findings {
		repaired := ""
		if f.Repaired {
			repaired = " (repaired)"
		}
		fmt.Printf("%s: %s: %s%s\n", f.Kind, f.Where, f.What, repaired)
	}
	if r.More > 0 {
		fmt.Printf("and %d more\n", r.More)
	}
	if r.Rebuilding {
		fmt.Println("the index is being rebuilt: reference lists were not verified; verify again when plinth status calls it complete")
	}
	if r.Elsewhere > 0 {
		fmt.Printf("%s with other hosts: what those need was not walked\n", plural(r.Elsewhere, "disk"))
	}
	verdict := "nothing is wrong"
	if n := len(r.Findings) + r.More; n > 0 {
		verdict = fmt.Sprintf("%d findings", n)
	}
	fmt.Printf("verified %d disks, %d segments, %d chunks: %s\n", r.Disks, r.Segments, r.Chunks, verdict)
}

// progress draws a bar on a terminal, and nothing elsewhere.
type progress struct {
	name  string
	drawn bool
	tty   bool
}

func newProgress(name string) *progress {
	_, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS)
	return &progress{name: name, tty: err == nil}
}

func (p *progress) show(done, total int) {
	if !p.tty || total <= 0 {
		return
	}
	const width = 40
	n := width * done / total
	bar := make([]byte, width)
	for i := range bar {
		bar[i] = '.'
		if i < n {
			bar[i] = '#'
		}
	}
	p.drawn = true
	fmt.Fprintf(os.Stderr, "\r%s [%s] %d/%d", p.name, bar, done, total)
}

func (p *progress) end() {
	if p.drawn {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}
