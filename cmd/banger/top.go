package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"
)

// topPace is how often `banger top` looks, detailPace how often at the VM that it shows.
const (
	topPace    = time.Second
	detailPace = 2 * time.Second
)

// patience is for how many looks the list may be awaited before the user is told.
const patience = 3

func (c *client) topCmd() *cobra.Command {
	return &cobra.Command{
		Use: "top", Short: "Watch all VMs in the terminal", Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		Long: "Watch all VMs in the terminal: figures, CPU over time, and a VM's ports and events on Enter.\n" +
			"Reads the file `list.json` and, of the VMs on the screen, `stats.json`: only they are kept warm. The keys are shown at the bottom; Ctrl-C quits too.",
		RunE: func(*cobra.Command, []string) error {
			if err := c.tree().check(); err != nil {
				return err
			}
			_, in := terminal(c.std.in)
			if _, out := terminal(c.std.out); !in || !out {
				return &failure{exitUsage, fmt.Errorf("top needs a terminal; `banger ls` prints the same once")}
			}
			p := tea.NewProgram(newTop(c.tree()), tea.WithInput(c.std.in), tea.WithOutput(c.std.out))
			if _, err := p.Run(); err != nil && !errors.Is(err, tea.ErrInterrupted) {
				return &failure{exitFailed, fmt.Errorf("cannot use this terminal: %w", err)}
			}
			return nil
		},
	}
}

// order is what the rows may be sorted by.
type order struct {
	name string
	less func(a, b *topRow) int
}

// orders begin with the one at the start; biggest first where that is what one looks for.
var orders = []order{
	{"name", func(a, b *topRow) int { return strings.Compare(a.Name, b.Name) }},
	{"cpu", func(a, b *topRow) int { return cmp.Compare(or(b.CPU, -1), or(a.CPU, -1)) }},
	{"memory", func(a, b *topRow) int { return cmp.Compare(or(b.RSS, -1), or(a.RSS, -1)) }},
	{"state", func(a, b *topRow) int { return strings.Compare(a.State, b.State) }},
	{"uptime", func(a, b *topRow) int { return cmp.Compare(or(b.Uptime, -1), or(a.Uptime, -1)) }},
}

func or[T any](v *T, otherwise T) T {
	if v == nil {
		return otherwise
	}
	return *v
}

// top is the model of the program (tea.Model); only bubbletea's own goroutine touches it.
type top struct {
	tree          tree
	width, height int

	rows    []topRow             // as sorted and filtered
	all     []topRow             // nil before the first list came
	history map[string][]float64 // CPU percent by VM, oldest first
	asked   map[string]bool      // VMs whose figures are being read
	awaited int                  // looks since the list was asked for, 0 when it is there

	order    int
	reversed bool
	filter   string
	typing   bool   // the filter
	selected string // a VM's name
	place    int    // row of the selected VM, also after it was removed
	first    int    // row at the top of the screen

	detail *detail // of the VM that is shown, nil for the list
	err    string  // why the list is old
}

func newTop(t tree) *top {
	return &top{tree: t, width: 80, height: 24, history: map[string][]float64{}, asked: map[string]bool{}}
}

type (
	tickMsg time.Time
	listMsg struct {
		rows []topRow
		err  error
	}
	figuresMsg struct {
		name string
		row  *topRow // nil if they could not be read
	}
)

func tick() tea.Cmd { return tea.Tick(topPace, func(t time.Time) tea.Msg { return tickMsg(t) }) }

func (m *top) Init() tea.Cmd { return m.look() }

// look asks for the list once it has the last one, and looks again later.
func (m *top) look() tea.Cmd {
	if m.awaited++; m.awaited == 1 {
		return tea.Batch(m.readList, tick())
	}
	if m.awaited > patience {
		m.err = "bangerd does not answer"
	}
	return tick()
}

func (m *top) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		m.arrange()
	case tickMsg:
		return m, m.look()
	case listMsg:
		return m, m.listed(msg)
	case figuresMsg:
		delete(m.asked, msg.name)
		m.figures(msg)
	case partMsg:
		if m.detail == msg.of {
			msg.fill()
			return m, tea.Tick(detailPace, func(time.Time) tea.Msg { return msg.again(msg.of) })
		}
	case tea.KeyPressMsg:
		return m, m.key(msg.String(), msg.Text)
	case tea.PasteMsg:
		if m.typing {
			m.extend(msg.Content)
		}
	}
	return m, nil
}

// listed takes a new list and asks for the figures of the VMs on the screen.
func (m *top) listed(msg listMsg) tea.Cmd {
	m.awaited = 0
	if msg.err != nil {
		m.err = msg.err.Error()
		return nil
	}
	m.err = ""
	alive := map[string]bool{}
	for i := range msg.rows {
		r := &msg.rows[i]
		alive[r.Name] = true
		if r.CPU != nil {
			h := append(m.history[r.Name], *r.CPU)
			m.history[r.Name] = h[max(0, len(h)-sparkWidth):]
		}
	}
	for name := range m.history {
		if !alive[name] {
			delete(m.history, name)
		}
	}
	m.all = msg.rows
	m.arrange()
	shown := m.visible()
	if m.detail != nil {
		shown = nil
		if r := m.row(m.detail.name); r != nil {
			shown = []topRow{*r}
		}
	}
	var cmds []tea.Cmd
	for _, r := range shown {
		if (r.State == "running" || r.State == "paused") && !m.asked[r.Name] {
			m.asked[r.Name] = true
			cmds = append(cmds, m.readFigures(r.Name))
		}
	}
	return tea.Batch(cmds...)
}

// figures shows what a VM's own stats say until the next list.
func (m *top) figures(msg figuresMsg) {
	if msg.row == nil {
		return
	}
	for _, rows := range [][]topRow{m.all, m.rows} {
		if i := index(rows, msg.name); i >= 0 {
			rows[i].CPU, rows[i].RSS = msg.row.CPU, msg.row.RSS
		}
	}
}

// index is the place of a VM, -1 if it is not there.
func index(rows []topRow, name string) int {
	return slices.IndexFunc(rows, func(r topRow) bool { return r.Name == name })
}

// row is what the list says of a VM, nil if it is not there.
func (m *top) row(name string) *topRow {
	if i := index(m.all, name); i >= 0 {
		return &m.all[i]
	}
	return nil
}

// arrange filters and sorts, and keeps the selected VM selected and on the screen.
func (m *top) arrange() {
	m.rows = m.rows[:0:0]
	for _, r := range m.all {
		if strings.Contains(r.Name, m.filter) || strings.Contains(r.State, m.filter) {
			m.rows = append(m.rows, r)
		}
	}
	less := orders[m.order].less
	slices.SortStableFunc(m.rows, func(a, b topRow) int {
		if m.reversed {
			return less(&b, &a)
		}
		return less(&a, &b)
	})
	if len(m.rows) == 0 { // the selected VM may come back
		m.first = 0
		return
	}
	at := index(m.rows, m.selected)
	if at < 0 { // its neighbour
		at = min(m.place, len(m.rows)-1)
		m.selected = m.rows[at].Name
	}
	m.place = at
	page := m.page()
	m.first = max(0, min(m.first, at, len(m.rows)-page), at-page+1)
}

// page is how many rows the screen has.
func (m *top) page() int { return max(1, m.height-headLines-footLines) }

func (m *top) visible() []topRow {
	return m.rows[min(m.first, len(m.rows)):min(m.first+m.page(), len(m.rows))]
}

func (m *top) move(by int) {
	if len(m.rows) == 0 {
		return
	}
	m.selected = m.rows[max(0, min(len(m.rows)-1, m.place+by))].Name
	m.arrange()
}

// key handles one key press. text is what it prints, empty for keys such as Enter.
func (m *top) key(name, text string) tea.Cmd {
	if name == "ctrl+c" {
		return tea.Quit
	}
	switch {
	case m.typing:
		m.typed(name, text)
	case m.detail != nil:
		switch name {
		case "esc", "enter", "backspace", "left":
			m.detail = nil
		case "q":
			return tea.Quit
		}
	default:
		return m.listKey(name)
	}
	return nil
}

func (m *top) listKey(name string) tea.Cmd {
	switch name {
	case "q":
		return tea.Quit
	case "up", "k":
		m.move(-1)
	case "down", "j":
		m.move(1)
	case "pgup":
		m.move(-m.page())
	case "pgdown", "space":
		m.move(m.page())
	case "home", "g":
		m.move(-len(m.rows))
	case "end", "G":
		m.move(len(m.rows))
	case "s":
		m.order = (m.order + 1) % len(orders)
		m.arrange()
	case "r":
		m.reversed = !m.reversed
		m.arrange()
	case "/":
		m.typing = true
	case "esc":
		m.filter = ""
		m.arrange()
	case "enter", "right":
		if len(m.rows) > 0 {
			return m.open(m.selected)
		}
	}
	return nil
}

// typed changes the filter.
func (m *top) typed(name, text string) {
	switch name {
	case "enter":
		m.typing = false
	case "esc":
		m.typing, m.filter = false, ""
	case "backspace":
		m.filter = m.filter[:max(0, len(m.filter)-1)]
	}
	m.extend(text)
}

// extend adds the printable ASCII of text, of which names consist, to the filter.
func (m *top) extend(text string) {
	for _, r := range text {
		if r > ' ' && r < 0x7f {
			m.filter += string(r)
		}
	}
	m.arrange()
}
