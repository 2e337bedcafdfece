package main

import (
	"cmp"
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// topPace is how often `banger top` reads the list; detailPace, how often it reads the VM on the
// screen of one VM.
const (
	topPace    = time.Second
	detailPace = 2 * time.Second
)

// patience is how many ticks the list may take before the screen says so.
const patience = 3

func (c *client) topCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "top", Short: "Watch and work all VMs in the terminal",
		Long: "Watch all VMs in the terminal: figures, and CPU over time.\n" +
			"Enter shows a VM's ports and events. The last lines show the keys, `?` all of them.\n" +
			"Capital letters start, stop and remove the selected VM, or open its console.\n" +
			"Reads the file `list.json`, and `stats.json` only of the VMs on the screen.",
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
	}
	color := colorFlag(cmd)
	cmd.RunE = c.onTree(func([]string) error { return c.top(c.colours(*color)) })
	return cmd
}

// top runs the program of `banger top` until a key or a signal ends it.
func (c *client) top(colours bool) error {
	_, in := terminal(c.std.in)
	if _, out := terminal(c.std.out); !in || !out {
		return errors.New("top needs a terminal; `banger ls` prints the same once")
	}
	if os.Getenv("TERM") == "dumb" {
		return errors.New("top needs a terminal that moves its cursor; " +
			"`banger ls` prints the same once")
	}
	profile := colorprofile.ASCII // attributes only
	if colours {
		profile = colorprofile.ANSI
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	m := newTop(c.tree)
	m.look.colours = colours
	m.command = func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, "/proc/self/exe",
			append([]string{"--mount", string(c.tree)}, args...)...)
		cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
		return cmd
	}
	p := tea.NewProgram(m, tea.WithInput(c.std.in), tea.WithOutput(c.std.out),
		tea.WithoutSignalHandler(), tea.WithColorProfile(profile))
	ended := make(chan struct{})
	err := interruptible(func() error {
		defer close(ended)
		_, err := p.Run()
		return err
	})
	if bySignal, ok := errors.AsType[commandEnded](err); ok {
		cancel() // the program that has the terminal, if there is one
		p.Quit()
		<-ended // the terminal is as before
		if bySignal == endedBy(unix.SIGINT) {
			return nil // as Ctrl-C, which is a key there
		}
		return bySignal
	}
	if err != nil && !errors.Is(err, tea.ErrInterrupted) {
		return terminalError(err)
	}
	return nil
}

// orders are the ways to sort rows, the default first. Figures are sorted with the largest first.
var orders = []struct {
	name    string
	compare func(a, b *listRow) int
}{
	{"name", func(a, b *listRow) int { return strings.Compare(a.Name, b.Name) }},
	{"cpu", func(a, b *listRow) int { return cmp.Compare(or(b.CPU, -1), or(a.CPU, -1)) }},
	{"memory", func(a, b *listRow) int { return cmp.Compare(or(b.RSS, -1), or(a.RSS, -1)) }},
	{"state", func(a, b *listRow) int { return strings.Compare(a.State, b.State) }},
	{"uptime", func(a, b *listRow) int { return cmp.Compare(or(b.Uptime, -1), or(a.Uptime, -1)) }},
}

// top is the program's model (tea.Model). Only bubbletea's goroutine uses it.
type top struct {
	tree          tree
	look          look
	command       func(args ...string) *exec.Cmd // makes one of banger
	width, height int

	rows    []listRow            // sorted and filtered
	all     []listRow            // nil before the first list
	history map[string][]float64 // CPU percent by VM, oldest first
	reading map[string]bool      // VMs whose figures are being read
	waited  int                  // ticks since the read of the list began, 0 after its end

	order    int
	reversed bool
	filter   string
	typing   bool   // a filter
	selected string // name of a VM
	place    int    // row of the selected VM, also after its removal
	first    int    // row at the top of the screen

	detail  *detail   // nil for the list
	helping bool      // all keys are on the screen
	asked   *question // nil for none
	said    saidMsg   // of the last action
	err     string    // why the list is old
}

func newTop(t tree) *top {
	return &top{tree: t, width: 80, height: 24,
		history: map[string][]float64{}, reading: map[string]bool{}}
}

type (
	tickMsg time.Time
	listMsg struct {
		rows []listRow
		err  error
	}
	figuresMsg struct {
		name string
		row  *listRow // nil after an error
	}
)

func tick() tea.Cmd { return tea.Tick(topPace, func(t time.Time) tea.Msg { return tickMsg(t) }) }

func (m *top) Init() tea.Cmd { return m.poll() }

// poll starts a read of the list, unless one runs, and the next tick.
func (m *top) poll() tea.Cmd {
	if m.waited++; m.waited == 1 {
		return tea.Batch(m.readList, tick())
	}
	if m.waited > patience {
		m.err = "bangerd does not answer"
	}
	return tick()
}

// readSoon reads the list at once, after an action, unless that is under way.
func (m *top) readSoon() tea.Cmd {
	if m.waited > 0 {
		return nil
	}
	m.waited = 1
	return m.readList
}

func (m *top) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
		m.arrange()
	case tickMsg:
		return m, m.poll()
	case listMsg:
		return m, m.listed(msg)
	case figuresMsg:
		delete(m.reading, msg.name)
		m.figures(msg)
	case partMsg:
		if m.detail == msg.of {
			msg.fill()
			return m, tea.Tick(detailPace, func(time.Time) tea.Msg { return msg.again(msg.of) })
		}
	case saidMsg:
		m.said = msg
		return m, m.readSoon()
	case tea.KeyPressMsg:
		return m, m.key(msg.String(), msg.Text)
	case tea.PasteMsg:
		if m.typing {
			m.extend(msg.Content)
		}
	}
	return m, nil
}

// listed stores a new list and starts reads of the figures of the VMs on the screen.
func (m *top) listed(msg listMsg) tea.Cmd {
	m.waited = 0
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
			shown = []listRow{*r}
		}
	}
	var cmds []tea.Cmd
	for _, r := range shown {
		if (r.State == "running" || r.State == "paused") && !m.reading[r.Name] {
			m.reading[r.Name] = true
			cmds = append(cmds, m.readFigures(r.Name))
		}
	}
	return tea.Batch(cmds...)
}

// figures stores a VM's own figures until the next list.
func (m *top) figures(msg figuresMsg) {
	if msg.row == nil {
		return
	}
	for _, rows := range [][]listRow{m.all, m.rows} {
		if i := index(rows, msg.name); i >= 0 {
			rows[i].CPU, rows[i].RSS = msg.row.CPU, msg.row.RSS
		}
	}
}

// index returns the row of a VM, -1 if there is none.
func index(rows []listRow, name string) int {
	return slices.IndexFunc(rows, func(r listRow) bool { return r.Name == name })
}

// row returns the list's row of a VM, nil if there is none.
func (m *top) row(name string) *listRow {
	if i := index(m.all, name); i >= 0 {
		return &m.all[i]
	}
	return nil
}

// arrange filters and sorts the rows and keeps the selected VM on the screen.
func (m *top) arrange() {
	m.rows = m.rows[:0:0]
	for _, r := range m.all {
		if strings.Contains(r.Name, m.filter) || strings.Contains(r.State, m.filter) {
			m.rows = append(m.rows, r)
		}
	}
	compare := orders[m.order].compare
	slices.SortStableFunc(m.rows, func(a, b listRow) int {
		if m.reversed {
			return compare(&b, &a)
		}
		return compare(&a, &b)
	})
	if len(m.rows) == 0 { // the selection stays for when the VM returns
		m.first = 0
		return
	}
	m.place = max(0, min(m.place, len(m.rows)-1)) // a neighbour, if the VM is gone
	if i := index(m.rows, m.selected); i >= 0 {
		m.place = i
	}
	m.selected = m.rows[m.place].Name
	page := m.page()
	m.first = max(0, min(m.first, m.place, len(m.rows)-page), m.place-page+1)
}

// page returns how many rows the screen has.
func (m *top) page() int { return max(1, m.height-headLines-m.footLines()) }

func (m *top) visible() []listRow {
	return m.rows[min(m.first, len(m.rows)):min(m.first+m.page(), len(m.rows))]
}

func (m *top) move(by int) {
	if len(m.rows) == 0 {
		return
	}
	m.selected = m.rows[max(0, min(len(m.rows)-1, m.place+by))].Name
	m.arrange()
}

// key handles one key press. text is the key's character, empty for keys such as Enter.
func (m *top) key(name, text string) tea.Cmd {
	if name == "ctrl+c" {
		return tea.Quit
	}
	m.said = saidMsg{}
	switch {
	case m.asked != nil:
		return m.answer(name)
	case m.typing:
		m.editFilter(name, text)
		return nil
	case m.helping:
		m.helping = false
		return nil
	case name == "?":
		m.helping = true
		return nil
	case name == "q":
		return tea.Quit
	}
	if cmd, ok := m.act(text); ok {
		return cmd
	}
	if m.detail == nil {
		return m.listKey(name)
	}
	switch name {
	case "esc", "enter", "backspace", "left":
		m.detail = nil
	}
	return nil
}

func (m *top) listKey(name string) tea.Cmd {
	switch name {
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

// editFilter handles a key press while the filter is typed.
func (m *top) editFilter(name, text string) {
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

// extend adds text to the filter, without characters that no name has.
func (m *top) extend(text string) {
	for _, r := range text {
		if r > ' ' && r < 0x7f {
			m.filter += string(r)
		}
	}
	m.arrange()
}
