// Command svg draws the screen of a terminal, as `tmux capture-pane -e -p` prints it, as an SVG
// picture.
//
//	tmux capture-pane -e -p | svg 80 >screen.svg
//
// It knows the attributes bold, faint and reverse, and the first eight colours of text. Cells have
// a fixed size in every font: text is stretched to its cells, and the blocks of bars are drawn as
// rectangles.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/charmbracelet/x/ansi"
)

// Sizes in pixels.
const (
	cellWidth  = 8.4
	cellHeight = 18
	baseline   = 13
	margin     = 14
)

const fonts = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"

const (
	background = "#16181d"
	foreground = "#c8ccd4"
	bright     = "#ffffff"
	dim        = "#7d8590"
)

// palette has the colours of text by their attributes.
var palette = map[string]string{
	"30": "#484f58", "31": "#ff7b72", "32": "#56d364", "33": "#e3b341",
	"34": "#79c0ff", "35": "#d2a8ff", "36": "#56d4dd", "37": "#ffffff",
}

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "svg:", err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: svg COLUMNS")
	}
	columns, err := strconv.Atoi(args[0])
	if err != nil {
		return fmt.Errorf("cannot read the number of columns: %w", err)
	}
	screen, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	draw(w, string(screen), columns)
	return w.Flush()
}

// style holds the attributes of text.
type style struct {
	bold, faint, reverse bool
	colour               string // of the palette, empty for the default
}

// draw writes the picture of a screen. Attributes go on from line to line, as tmux prints them.
func draw(w io.Writer, screen string, columns int) {
	lines := strings.Split(strings.TrimSuffix(screen, "\n"), "\n")
	width, height := float64(columns)*cellWidth+2*margin, len(lines)*cellHeight+2*margin
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%d"`+
		` viewBox="0 0 %.0[1]f %[2]d" font-family="%s" font-size="14">`+"\n", width, height, fonts)
	fmt.Fprintf(w, `<rect width="100%%" height="100%%" rx="8" fill="%s"/>`+"\n", background)
	var s style
	for i, line := range lines {
		column := 0
		for line != "" {
			var text string
			if text, line = cut(line, &s); text != "" {
				drawText(w, text, s, column, i)
				column += ansi.StringWidth(text)
			}
		}
	}
	fmt.Fprintln(w, "</svg>")
}

// cut returns the text before the next escape sequence. A sequence at the start of the line changes
// the style and has no text.
func cut(line string, s *style) (text, rest string) {
	const escape = "\x1b["
	if !strings.HasPrefix(line, escape) {
		if i := strings.Index(line, escape); i >= 0 {
			return line[:i], line[i:]
		}
		return line, ""
	}
	attributes, rest, _ := strings.Cut(line[len(escape):], "m")
	for a := range strings.SplitSeq(attributes, ";") {
		switch a {
		case "", "0":
			*s = style{}
		case "1":
			s.bold = true
		case "2":
			s.faint = true
		case "7":
			s.reverse = true
		case "39":
			s.colour = ""
		default:
			s.colour = cmp.Or(palette[a], s.colour)
		}
	}
	return "", rest
}

func drawText(w io.Writer, text string, s style, column, line int) {
	x, y := margin+float64(column)*cellWidth, margin+line*cellHeight
	fill, weight := foreground, ""
	switch {
	case s.bold:
		fill, weight = bright, ` font-weight="bold"`
	case s.faint:
		fill = dim
	}
	fill = cmp.Or(s.colour, fill)
	if s.reverse {
		width := float64(ansi.StringWidth(text)) * cellWidth
		drawRect(w, x, float64(y), width, cellHeight, fill)
		fill = background
	}
	// Words apart, so that none moves where a viewer's font is wider.
	for text != "" {
		word, rest := nextWord(text)
		cells := float64(ansi.StringWidth(word)) * cellWidth
		switch height := block(word); {
		case strings.TrimSpace(word) == "":
		case height > 0:
			h := float64(height*cellHeight) / 8
			drawRect(w, x, float64(y+cellHeight)-h, cells-1, h, fill)
		default:
			var escaped bytes.Buffer
			_ = xml.EscapeText(&escaped, []byte(word)) // a buffer takes all
			fmt.Fprintf(w, `<text x="%.1f" y="%d" textLength="%.1f"`+
				` lengthAdjust="spacingAndGlyphs" fill="%s"%s>%s</text>`+"\n", x, y+baseline, cells, fill, weight, &escaped)
		}
		x, text = x+cells, rest
	}
}

func drawRect(w io.Writer, x, y, width, height float64, fill string) {
	fmt.Fprintf(w, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n",
		x, y, width, height, fill)
}

// nextWord cuts a text after a block, a run of spaces, or a run of anything else.
func nextWord(text string) (word, rest string) {
	for i, r := range text {
		switch first := text[0]; {
		case i == 0:
		case block(text[:i]) > 0, block(string(r)) > 0, (r == ' ') != (first == ' '):
			return text[:i], text[i:]
		}
	}
	return text, ""
}

// block returns how many eighths of its cell a lower block fills, 0 for any other text.
func block(s string) int {
	r := []rune(s)
	if len(r) != 1 || r[0] < '▁' || r[0] > '█' {
		return 0
	}
	return int(r[0]-'▁') + 1
}
