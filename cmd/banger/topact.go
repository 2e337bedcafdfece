package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	tea "charm.land/bubbletea/v2"

	"banger/internal/printable"
)

// action is what a key does with the selected VM. Capital letters act, so that a key which moves or
// sorts, pressed by mistake, does nothing.
type action struct {
	key, word string
	question  string // asked before, with the VM's name; empty for what destroys nothing
	do        func(m *top, name string) tea.Cmd
}

var actions = []action{
	{"S", "start", "", command("start")},
	{"X", "stop", "Stop %s? Its guest shuts down.", command("stop")},
	{"P", "pause", "", pauseOrResume},
	{"K", "kill", "Kill %s? That is like pulling its plug.", command("kill")},
	{"D", "remove", "Remove %s and its disks?", removeVM},
	{"C", "console", "", program("console")},
	{"E", "shell", "", program("shell")},
}

// question waits for y. Every other key is no.
type question struct {
	text string
	yes  func() tea.Cmd
}

// saidMsg is how an action ended.
type saidMsg struct {
	text string
	bad  bool
}

// said returns the message of an action that ended with err.
func said(text string, err error) tea.Msg {
	if err != nil {
		return saidMsg{printable.Message(err.Error()), true}
	}
	return saidMsg{text + ": done", false}
}

// act does what a key stands for, perhaps after a question. It returns false for a key that acts on
// nothing.
func (m *top) act(key string) (tea.Cmd, bool) {
	for i := range actions {
		a := &actions[i]
		if a.key != key {
			continue
		}
		name := m.selected
		if m.detail != nil {
			name = m.detail.name
		}
		switch {
		case m.row(name) == nil:
			m.said = saidMsg{"no VM is selected", true}
			return nil, true
		case a.question != "":
			m.asked = &question{fmt.Sprintf(a.question, name) + " y/n",
				func() tea.Cmd { return a.do(m, name) }}
			return nil, true
		}
		return a.do(m, name), true
	}
	return nil, false
}

// answer takes a key as the answer to the question on the screen.
func (m *top) answer(key string) tea.Cmd {
	asked := m.asked
	m.asked = nil
	if key == "y" || key == "Y" {
		return asked.yes()
	}
	m.said = saidMsg{"nothing was done", false}
	return nil
}

// inBackground does something to a VM while the screen goes on, and says how that ends.
func (m *top) inBackground(word, name string, do func(v vm) error) tea.Cmd {
	text := word + " " + name
	m.said = saidMsg{text + " ...", false}
	t := m.tree
	return func() tea.Msg {
		v, err := t.vm(name)
		if err == nil {
			err = do(v)
		}
		return said(text, err)
	}
}

func command(word string) func(*top, string) tea.Cmd {
	return func(m *top, name string) tea.Cmd {
		return m.inBackground(word, name, func(v vm) error { return v.command(word) })
	}
}

func pauseOrResume(m *top, name string) tea.Cmd { return command(m.pauseWord(name))(m, name) }

// pauseWord returns what the key for a pause does to a VM.
func (m *top) pauseWord(name string) string {
	if r := m.row(name); r != nil && r.State == "paused" {
		return "resume"
	}
	return "pause"
}

func removeVM(m *top, name string) tea.Cmd {
	t := m.tree
	return m.inBackground("remove", name, func(v vm) error { return t.remove(v) })
}

// program returns an action that leaves the terminal to a command of banger until that ends.
func program(word string) func(*top, string) tea.Cmd {
	return func(m *top, name string) tea.Cmd {
		cmd := m.command(word, name)
		var messages bytes.Buffer
		cmd.Stderr = io.MultiWriter(os.Stderr, &messages)
		return tea.ExecProcess(cmd, func(err error) tea.Msg {
			// Otherwise the failure is that of the command in the guest, which the user saw.
			last := lines(messages.String())
			if n := len(last); err != nil && n > 0 {
				if why, ok := strings.CutPrefix(last[n-1], "banger: "); ok {
					return saidMsg{why, true}
				}
			}
			return saidMsg{}
		})
	}
}
