package main

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"syscall"

	tea "github.com/charmbracelet/bubbletea"
)

// topRow is one VM of list.json, or of stats.json where the keys agree; nil is not known.
type topRow struct {
	Name    string   `json:"name"`
	State   string   `json:"state"`
	Health  *string  `json:"health"`
	CPU     *float64 `json:"cpu_percent"`
	RSS     *int64   `json:"rss_bytes"`
	Address *string  `json:"address"`
	Uptime  *float64 `json:"uptime"`
}

// detail is what is shown of one VM. Its text comes escaped from the daemon.
type detail struct {
	name   string
	ready  bool
	facts  [][2]string
	ports  []string
	events []string
}

// detailEvents bounds the events that are shown of one VM.
const detailEvents = 100

// readList and the other reads run in goroutines of bubbletea's; they touch nothing of the model but its tree.
func (m *top) readList() tea.Msg {
	text, err := read(m.tree.top("list.json"))
	if err != nil {
		return listMsg{err: explain("cannot list the VMs", "", err)}
	}
	var rows []topRow
	if err := json.Unmarshal([]byte(text), &rows); err != nil {
		return listMsg{err: err}
	}
	return listMsg{rows: rows}
}

func (m *top) readFigures(name string) tea.Cmd {
	return func() tea.Msg {
		text, err := read(filepath.Join(m.tree.top("vms"), name, "stats.json"))
		if err != nil {
			return figuresMsg{name: name}
		}
		row := new(topRow)
		if json.Unmarshal([]byte(text), row) != nil {
			return figuresMsg{name: name}
		}
		return figuresMsg{name, row}
	}
}

// readDetail blocks for the 3 seconds that a guest has to answer at most.
func (m *top) readDetail(name string) tea.Msg {
	d := &detail{name: name, ready: true}
	dir := filepath.Join(m.tree.top("vms"), name)
	for _, file := range []string{"state", "health", "address", "pid", "image", "cpus", "memory", "error"} {
		text, err := read(filepath.Join(dir, file))
		if errors.Is(err, syscall.ENOENT) {
			d.facts = append(d.facts, [2]string{"state", "removed"})
			return detailMsg(d)
		}
		if text = strings.TrimSpace(text); err == nil && text != "" {
			d.facts = append(d.facts, [2]string{file, text})
		}
	}
	if text, err := read(filepath.Join(dir, "ports")); err == nil {
		d.ports = lines(text)
	} else if !errors.Is(err, syscall.EHOSTDOWN) {
		d.ports = []string{"(" + explain("cannot read them", "", err).Error() + ")"}
	}
	if text, err := read(filepath.Join(dir, "events")); err == nil {
		d.events = lines(text)
		d.events = d.events[max(0, len(d.events)-detailEvents):]
	}
	return detailMsg(d)
}

func lines(text string) []string {
	text = strings.TrimRight(text, "\n")
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}
