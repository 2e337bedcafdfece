package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/charmbracelet/x/ansi"
	"github.com/spf13/cobra"
)

// Attributes of text. Every terminal has the first four, and NO_COLOR, being about colours, allows
// them. The colours are of the 16 that people choose for their terminals.
const (
	bold    = "\x1b[1m"
	faint   = "\x1b[2m"
	inverse = "\x1b[7m"
	plain   = "\x1b[0m"
	red     = "\x1b[31m"
	green   = "\x1b[32m"
	yellow  = "\x1b[33m"
	cyan    = "\x1b[36m"
)

// wordColours has the colours of states of VMs and images, of health, and of bad events. A colour
// stands beside the word and never in its place.
var wordColours = map[string]string{
	"running": green, "healthy": green, "ready": green,
	"starting": cyan, "stopping": cyan, "building": cyan,
	"paused": yellow,
	"failed": red, "unhealthy": red, "error": red, "oom": red, "panic": red,
}

// when is the value of --color.
type when string

const (
	auto   when = "auto"
	always when = "always"
	never  when = "never"
)

func (w *when) String() string { return string(*w) }

// Type names the value in the help text.
func (w *when) Type() string { return "WHEN" }

// Set accepts the words that ls(1) and git(1) have.
func (w *when) Set(s string) error {
	switch when(s) {
	case auto, always, never:
		*w = when(s)
		return nil
	}
	return fmt.Errorf("use %s, %s or %s", auto, always, never)
}

func colorFlag(cmd *cobra.Command) *when {
	w := auto
	cmd.Flags().Var(&w, "color", "auto, always or never; auto: on a terminal, unless NO_COLOR is set")
	_ = cmd.RegisterFlagCompletionFunc("color",
		cobra.FixedCompletions([]string{string(auto), string(always), string(never)},
			cobra.ShellCompDirectiveNoFileComp))
	return &w
}

// look is how a command prints. Its zero value stands for the text of the tree's files as it is.
type look struct {
	people  bool // units, local times and a heading
	colours bool
}

// lookFlags adds the flags of a command that prints for people on a terminal, and the text of the
// tree's files elsewhere.
func (c *client) lookFlags(cmd *cobra.Command) func() look {
	raw := cmd.Flags().Bool("raw", false, "bytes and seconds as in the files, as without a terminal")
	w := colorFlag(cmd)
	return func() look {
		if *raw {
			return look{}
		}
		_, onTerminal := terminal(c.std.out)
		return look{people: onTerminal || *w == always, colours: c.colours(*w)}
	}
}

// colours decides whether the standard output gets colours. The terminal is not asked: it would
// answer into what was typed for the shell.
func (c *client) colours(w when) bool {
	if w != auto {
		return w == always
	}
	_, onTerminal := terminal(c.std.out)
	kind := os.Getenv("TERM")
	return onTerminal && os.Getenv("NO_COLOR") == "" && kind != "" && kind != "dumb"
}

// paint colours a state by its first word.
func (l look) paint(state string) string {
	word, _, _ := strings.Cut(state, " ")
	return l.with(wordColours[word], state)
}

// with returns a text with an attribute, where there are colours.
func (l look) with(attribute, text string) string {
	if !l.colours || attribute == "" {
		return text
	}
	return attribute + text + plain
}

// cells returns the width of a printable text. Nearly all is ASCII, which need not be parsed.
func cells(s string) int {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return ansi.StringWidth(s)
		}
	}
	return len(s)
}

// column is a column of a table.
type column struct {
	head   string
	number bool // on the right, for people
	bytes  bool // a number, with a unit for people
	state  bool // in colour
}

// table returns rows, for people below their heading. The cells are printable.
func (l look) table(columns []column, rows [][]string) string {
	if l.people {
		for _, row := range rows {
			for i, c := range columns {
				if c.bytes {
					row[i] = unitText(row[i])
				}
			}
		}
	}
	widths := make([]int, len(columns))
	for i, c := range columns {
		if l.people {
			widths[i] = len(c.head)
		}
		for _, row := range rows {
			widths[i] = max(widths[i], cells(row[i]))
		}
	}
	var b strings.Builder
	line := func(cell func(i int) (text, painted string)) {
		for i, c := range columns {
			if i > 0 {
				b.WriteString("  ")
			}
			text, painted := cell(i)
			space := strings.Repeat(" ", widths[i]-cells(text))
			switch {
			case l.people && (c.number || c.bytes):
				b.WriteString(space + painted)
			case i == len(columns)-1:
				b.WriteString(painted)
			default:
				b.WriteString(painted + space)
			}
		}
		b.WriteByte('\n')
	}
	if l.people {
		line(func(i int) (string, string) { return columns[i].head, l.with(bold, columns[i].head) })
	}
	for _, row := range rows {
		line(func(i int) (string, string) {
			if columns[i].state {
				return row[i], l.paint(row[i])
			}
			return row[i], row[i]
		})
	}
	return b.String()
}
