package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
)

// keys presses special keys by their names and types everything else.
func keys(m *top, keys ...string) {
	special := map[string]rune{
		"enter": tea.KeyEnter, "esc": tea.KeyEsc, "down": tea.KeyDown, "up": tea.KeyUp,
		"end": tea.KeyEnd, "pgdown": tea.KeyPgDown, "backspace": tea.KeyBackspace,
	}
	for _, k := range keys {
		if code, ok := special[k]; ok {
			m.Update(tea.KeyPressMsg{Code: code})
			continue
		}
		for _, r := range k {
			m.Update(tea.KeyPressMsg{Code: r, Text: string(r)})
		}
	}
}

// TestTopFilter edits the filter with keys and with pasted text.
func TestTopFilter(t *testing.T) {
	m := newTop("")
	m.Update(listMsg{rows: fleet(30)})
	m.Update(tea.PasteMsg{Content: "ignored"})
	keys(m, "/", "vm2x", "backspace")
	m.Update(tea.PasteMsg{Content: " 9\x1b\n"})
	if m.filter != "vm29" || len(m.rows) != 1 {
		t.Errorf("filter %q shows %d VMs", m.filter, len(m.rows))
	}
	keys(m, "esc")
	if m.filter != "" || m.typing || len(m.rows) != 30 {
		t.Errorf("filter %q, typing %v, shows %d VMs", m.filter, m.typing, len(m.rows))
	}
}

// fleet makes a list of VMs named vm0, vm1, ...
func fleet(n int) []listRow {
	rows := []listRow{}
	for i := range n {
		cpu, rss := float64(i), int64(i)<<20
		rows = append(rows, listRow{Name: fmt.Sprintf("vm%d", i), State: "running", CPU: &cpu, RSS: &rss})
	}
	return rows
}

// TestTopFits draws everything that can be on screens of all sizes, with names, reasons and ports
// as bad as they come.
func TestTopFits(t *testing.T) {
	long := strings.Repeat("a-name-", 9)
	reason := "unhealthy 🚀🚀🚀 and a reason that is too long for any column, 漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字"
	address := "172.30.255.254"
	rows := append(fleet(50), listRow{Name: long, State: "starting", Health: &reason, Address: &address})
	for _, size := range [][2]int{{80, 24}, {40, 10}, {200, 50}, {3, 2}} {
		m := newTop("")
		screen := func(what string) {
			t.Helper()
			lines := strings.Split(m.screen(), "\n")
			if len(lines) != size[1] {
				t.Errorf("%v, %s: %d lines", size, what, len(lines))
			}
			for _, l := range lines {
				if w := ansi.StringWidth(l); w > size[0] {
					t.Errorf("%v, %s: a line of %d cells: %q", size, what, w, l)
				}
			}
		}
		m.Update(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
		screen("before the first list")
		m.Update(listMsg{rows: []listRow{}})
		screen("no VMs")
		m.Update(listMsg{rows: rows})
		keys(m, "end")
		screen("list")
		keys(m, "/", strings.Repeat("z", 300))
		screen("a filter being typed")
		keys(m, "enter")
		screen("no match")
		keys(m, "esc", "?")
		screen("the keys")
		keys(m, "q", "X")
		screen("a question")
		keys(m, "n", "enter")
		screen("a VM that was not read")
		d := m.detail
		many := strings.Split(strings.Repeat(reason+"\n", 60), "\n")
		m.Update(partMsg{d, func() {
			d.err, d.facts, d.health, d.failed, d.ports, d.events = reason, many[:9], reason, reason, many, many
		}, nil})
		screen("a VM")
	}
}

func TestTopColumnsStayInPlace(t *testing.T) {
	wide, plain := "unhealthy", "漢字漢字"
	a := look{}.rowText(8, "a", "running", wide, "1.0", "", "1M", "1s", "-")
	b := look{}.rowText(8, "b", "running", plain, "1.0", "▁█", "1M", "1s", "-")
	at := func(s string) int { return ansi.StringWidth(s[:strings.Index(s, "1M")]) }
	if at(a) != at(b) {
		t.Errorf("\n%s\n%s", a, b)
	}
	if got := shorten("web-frontend-production-17", 14); got != "web-fron…on-17" {
		t.Error(got)
	}
}

func TestTopKeepsTheSelection(t *testing.T) {
	m := newTop("")
	rows := fleet(50)
	m.Update(listMsg{rows: rows})
	keys(m, "s", "g", "pgdown", "down") // by CPU, biggest first
	selected, place := m.selected, m.place
	if place != m.page()+1 {
		t.Fatalf("%s at %d", selected, place)
	}
	busiest := append(fleet(50), listRow{Name: "new", State: "running"})
	*busiest[0].CPU = 1000
	m.Update(listMsg{rows: busiest})
	if m.selected != selected || m.place != place+1 {
		t.Errorf("%s at %d, was %s at %d", m.selected, m.place, selected, place)
	}
	if !strings.Contains(m.screen(), inverse+selected) {
		t.Error("the selected VM is not on the screen")
	}
	keys(m, "/", "nothing", "enter")
	if strings.Contains(m.screen(), inverse) {
		t.Error("something is selected where nothing is")
	}
	keys(m, "esc")
	if m.selected != selected {
		t.Errorf("%s after a filter that nothing matched, was %s", m.selected, selected)
	}
	var left []listRow
	for _, r := range fleet(50) {
		if r.Name != selected {
			left = append(left, r)
		}
	}
	place = m.place
	m.Update(listMsg{rows: left})
	if m.selected == selected || m.place != place {
		t.Errorf("%s at %d after %s at %d was removed", m.selected, m.place, selected, place)
	}
}

// TestTopWaits leaves lists and parts unanswered: one read of each is under way, and the screen
// says what is missing.
func TestTopWaits(t *testing.T) {
	m := newTop(tree(web(t)))
	m.Init()
	for range patience {
		m.Update(tickMsg{})
	}
	if !strings.Contains(m.screen(), "does not answer") {
		t.Error(m.screen())
	}
	m.Update(listMsg{rows: fleet(3)})
	if m.waited != 0 || strings.Contains(m.screen(), "does not answer") {
		t.Error("the list came", m.screen())
	}
	keys(m, "enter", "esc", "enter")
	shown := m.detail
	old := &detail{name: shown.name}
	if _, again := m.Update(partMsg{old, func() { t.Error("filled in") }, nil}); again != nil {
		t.Error("what is no longer shown is read again")
	}
	if !strings.Contains(m.screen(), "reading ...") {
		t.Error(m.screen())
	}
}

// TestTopDetail reads a VM's files, then those of one that was removed, then finds no daemon.
func TestTopDetail(t *testing.T) {
	root := web(t)
	for file, text := range map[string]string{"pid": "7", "image": "builtin", "cpus": "1", "memory": "1024", "events": "1.0 1 web create"} {
		if err := os.WriteFile(filepath.Join(root, "vms/web", file), []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m := newTop(tree(root))
	m.Update(listMsg{rows: []listRow{{Name: "web", State: "running"}}})
	keys(m, "enter")
	look := func(want ...string) {
		t.Helper()
		for _, read := range []func(*detail) tea.Msg{m.readFacts, m.readHealth, m.readPorts} {
			m.Update(read(m.detail))
		}
		for _, w := range want {
			if !strings.Contains(m.screen(), w) {
				t.Errorf("no %q in\n%s", w, m.screen())
			}
		}
	}
	look("state running   health healthy   address 172.30.0.2", "memory 1.0K", "http  80", "ago  create")
	if err := os.RemoveAll(filepath.Join(root, "vms/web")); err != nil {
		t.Fatal(err)
	}
	look("web was removed", "state running", "ago  create")
	for _, file := range []string{"vms", "list.json"} {
		if err := os.RemoveAll(filepath.Join(root, file)); err != nil {
			t.Fatal(err)
		}
	}
	look("is it running?", "state running")
	if msg := m.readList().(listMsg); msg.err == nil || !strings.Contains(msg.err.Error(), "is it running?") {
		t.Error(msg.err)
	}
}

// TestTopActions presses each key that acts: some ask first, and only y does what was asked.
func TestTopActions(t *testing.T) {
	root := web(t)
	state := filepath.Join(root, "vms/web/state")
	for _, x := range []struct {
		state, key, question, program, want string // want is written to the file state
	}{
		{"stopped", "S", "", "", "start\n"},
		{"running", "X", "Stop web? Its guest shuts down. y/n", "", "stop\n"},
		{"running", "K", "Kill web? That is like pulling its plug. y/n", "", "kill\n"},
		{"running", "P", "", "", "pause\n"},
		{"paused", "P", "", "", "resume\n"},
		{"running", "C", "", "console web", ""},
		{"running", "E", "", "shell web", ""},
		{"running", "Z", "", "", ""},
	} {
		for _, inDetail := range []bool{false, true} {
			put(t, state, "")
			m, ran := newTop(tree(root)), ""
			m.command = func(args ...string) *exec.Cmd {
				ran = strings.Join(args, " ")
				return exec.Command("true")
			}
			m.Update(listMsg{rows: []listRow{{Name: "web", State: x.state}}})
			if inDetail {
				keys(m, "enter")
			}
			press := func(key string) tea.Cmd {
				_, cmd := m.Update(tea.KeyPressMsg{Code: rune(key[0]), Text: key})
				return cmd
			}
			cmd := press(x.key)
			if x.question != "" {
				for _, no := range []string{"n", x.key, " "} {
					if cmd != nil || m.asked == nil || !strings.Contains(m.screen(), x.question) {
						t.Fatalf("%s does not ask: %s", x.key, m.screen())
					}
					if press(no) != nil || !strings.Contains(m.screen(), "nothing was done") {
						t.Errorf("%s and %q did something: %s", x.key, no, m.screen())
					}
					cmd = press(x.key)
				}
				cmd = press("y")
			}
			if cmd != nil && ran == "" {
				m.Update(cmd())
			}
			if b, _ := os.ReadFile(state); string(b) != x.want || ran != x.program {
				t.Errorf("%s wrote %q and ran %q", x.key, b, ran)
			}
			if x.want != "" && !strings.Contains(m.screen(), "web: done") {
				t.Errorf("%s: %s", x.key, m.screen())
			}
		}
	}
}

// TestTopRefused shows why an action failed, also of a VM that was removed while it was shown.
func TestTopRefused(t *testing.T) {
	root := web(t)
	put(t, filepath.Join(root, "error"), "cannot remove web: \x1b[2J it runs\n")
	m := newTop(tree(root))
	keys(m, "S")
	if !strings.Contains(m.screen(), "error: no VM is selected") {
		t.Error(m.screen())
	}
	m.Update(listMsg{rows: []listRow{{Name: "web", State: "running"}}})
	for _, want := range []string{`error: cannot remove web: \x1b[2J it runs`, "error: no VM is called web"} {
		keys(m, "D")
		_, cmd := m.Update(tea.KeyPressMsg{Code: 'y', Text: "y"})
		m.Update(cmd())
		if !strings.Contains(m.screen(), want) {
			t.Errorf("no %q in\n%s", want, m.screen())
		}
		if err := os.RemoveAll(filepath.Join(root, "vms/web")); err != nil {
			t.Fatal(err)
		}
	}
	keys(m, "down")
	if strings.Contains(m.screen(), "error:") {
		t.Error("the error stays", m.screen())
	}
}

// TestTopColours finds colours beside words, and none in the selected row or where there are to be
// none.
func TestTopColours(t *testing.T) {
	for _, colours := range []bool{false, true} {
		m := newTop("")
		m.look.colours = colours
		m.Update(listMsg{rows: []listRow{{Name: "a", State: "running"}, {Name: "b", State: "failed"},
			{Name: "c", State: "paused"}}})
		s := m.screen()
		for _, painted := range []string{red + "failed", yellow + "paused"} {
			if strings.Contains(s, painted) != colours {
				t.Errorf("colours %v: %q", colours, s)
			}
		}
		if !strings.Contains(s, inverse+"a ") || strings.Contains(s, green) {
			t.Errorf("%q", s)
		}
	}
}

func TestScreenful(t *testing.T) {
	for _, x := range []struct {
		page string
		want string
	}{
		{"", "\x1b[H\x1b[J"},
		{"one\n", "\x1b[Hone\x1b[K\r\n\x1b[J"},
		{"123456\n漢字漢\n", "\x1b[H12345\x1b[K\r\n漢字\x1b[K\r\n\x1b[J"},
		{"1\n2\n3\n4\n", "\x1b[H1\x1b[K\r\n2\x1b[K\r\n\x1b[J"},
	} {
		if got := screenful(x.page, 5, 3); got != x.want {
			t.Errorf("%q: %q", x.page, got)
		}
	}
}

func TestUntilUnread(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	never := make(chan error)
	ended := make(chan error, 1)
	go func() { ended <- untilUnread(w, func() error { return <-never }) }()
	r.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "copy"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := untilUnread(file, func() error { return io.ErrShortWrite }); err != io.ErrShortWrite {
		t.Error(err)
	}
}
