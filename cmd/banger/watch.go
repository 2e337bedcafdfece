package main

import (
	"bytes"
	"io"
	"strings"
	"time"

	"golang.org/x/term"
)

// watchPace is how often `status --watch` prints.
const watchPace = time.Second

// watch calls print each second until it fails. On a terminal each page replaces the last one.
func (c *client) watch(print func() error) error {
	out := c.std.out
	screen, onTerminal := terminal(out)
	for first := true; ; first = false {
		var page bytes.Buffer
		c.std.out = &page
		err := print()
		c.std.out = out
		if err != nil {
			return err
		}
		text := page.String() + "\n"
		if onTerminal {
			width, height, err := term.GetSize(int(screen.Fd()))
			if err != nil {
				return terminalError(err)
			}
			if text = screenful(page.String(), width, height); first {
				text = strings.Repeat("\n", height) + text // scrolls the old content up
			}
		}
		if _, err := io.WriteString(out, text); err != nil {
			return &failure{exitFailed, err}
		}
		time.Sleep(watchPace)
	}
}

// screenful returns the text that writes a page over the old one, line by line, so that nothing
// flickers. It cuts what would wrap or scroll. The last line is the cursor's.
func screenful(page string, width, height int) string {
	rows := lines(page)
	var b strings.Builder
	b.WriteString("\x1b[H")
	for _, row := range rows[:min(len(rows), max(0, height-1))] {
		b.WriteString(fit(row, width) + "\x1b[K\r\n")
	}
	return b.String() + "\x1b[J"
}
