package compare

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
)

// plotted are the rows in the plot, two beside each other.
var plotted = []string{"read-32", "write-32", "durable-32", "seq-write"}

// Measures of the plot in pixels.
const (
	plotWidth   = 840
	panelWidth  = 410
	panelGap    = 20
	barHeight   = 15
	barStep     = 20
	nameWidth   = 156
	valueWidth  = 124
	titleHeight = 30
)

// plotStyle has text that has a contrast of 4 or more to white and to black, since
// not all that show an image tell it on which it is.
const plotStyle = `text{font:12px sans-serif;fill:#6e7781}.t{font-weight:bold}.p{fill:#2f81f7}.o{fill:#8c959f}`

// WritePlot draws medians as an SVG: what each server does in a second, with the
// CPU time of one operation. Equal results make equal bytes.
func (r *Results) WritePlot(out io.Writer) error {
	var body strings.Builder
	top, tallest := 0, 0
	for i, name := range plotted {
		left := i % 2 * (panelWidth + panelGap)
		height := r.plotPanel(&body, name, left, top)
		if tallest = max(tallest, height); i%2 == 1 || i == len(plotted)-1 {
			top, tallest = top+tallest, 0
		}
	}
	_, err := fmt.Fprintf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %[1]d %[2]d\">\n<style>%s</style>\n%s</svg>\n",
		plotWidth, top, plotStyle, &body)
	return err
}

// plotPanel draws the bars of a row and returns the panel's height.
func (r *Results) plotPanel(body *strings.Builder, row string, left, top int) int {
	type bar struct {
		*Server
		iops, cpu float64
	}
	var bars []bar
	most := 0.0
	for i := range Servers {
		s := &Servers[i]
		v, ok := r.median(row, s.Name, iops)
		if !ok || s.Name == null {
			continue
		}
		c, _ := r.median(row, s.Name, cpu)
		bars = append(bars, bar{s, v, c})
		most = max(most, v)
	}
	fmt.Fprintf(body, "<text class=\"t\" x=\"%d\" y=\"%d\">%s, per second</text>\n", left, top+18, escape(title(row)))
	y := top + titleHeight
	for _, b := range bars {
		class := "o"
		if b.isPlinth() {
			class = "p"
		}
		label := count(b.iops)
		if b.argv != nil {
			label += " · " + number(b.cpu) + " µs CPU"
		}
		width := max(b.iops/most*(panelWidth-nameWidth-valueWidth), 1)
		base := y + barHeight - 3
		fmt.Fprintf(body, "<text x=\"%d\" y=\"%d\">%s</text><rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" rx=\"2\"/><text x=\"%.1f\" y=\"%d\">%s</text>\n",
			left, base, escape(b.Title), class, left+nameWidth, y, width, barHeight, float64(left+nameWidth)+width+6, base, label)
		y += barStep
	}
	return y - top + 10
}

// count prints a number of operations shortly.
func count(v float64) string {
	if v >= 1e4 {
		return fmt.Sprintf("%.0f k", v/1e3)
	}
	if v >= 1e3 {
		return fmt.Sprintf("%.1f k", v/1e3)
	}
	return fmt.Sprintf("%.0f", v)
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}
