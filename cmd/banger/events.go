package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (c *client) eventsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "events [NAME]", Short: "Print the events of a VM, or of all",
		Long: `Print the events of a VM, or of all: Unix time, number, VM, what happened, detail.
On a terminal: local time, age, VM, what happened, detail; with -f without ages.
The events of all leave out those for a VM's readers only, such as refused writes.
Prints the file ` + "`events`, and with -f `wait/events`, over restarts of the daemon.",
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: c.completeVMs(1),
	}
	flags, looks := followFlags(cmd), c.lookFlags(cmd)
	show := func(of, dir string) error {
		s := eventStream{c: c, dir: dir, flags: flags, look: looks()}
		err := untilUnread(c.std.out, func() error {
			if flags.on {
				return c.rejoin(s.follow)
			}
			return s.past()
		})
		return explain("cannot read the events"+of, "", err)
	}
	ofAll := c.onTree(func([]string) error { return show("", string(c.tree)) })
	ofVM := c.onVM(func(v vm, _ []string) error { return show(" of "+v.name, v.dir) })
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return ofAll(cmd, args)
		}
		return ofVM(cmd, args)
	}
	return cmd
}

// event is a line of the tree's files of events. The daemon escaped its text.
type event struct {
	at               time.Time
	seq              uint64
	vm, what, detail string
}

// parseEvent returns false for a line that is no event, as `lost N`.
func parseEvent(line string) (e event, ok bool) {
	parts := strings.SplitN(line, " ", 5)
	if len(parts) < 4 {
		return e, false
	}
	seq, err := strconv.ParseUint(parts[1], 10, 64)
	e = event{at: unixTime(parts[0]), seq: seq, vm: parts[2], what: parts[3]}
	if len(parts) == 5 {
		e.detail = parts[4]
	}
	return e, err == nil && !e.at.IsZero()
}

// happened returns what happened. A state has its colour.
func (l look) happened(e event) string {
	what := l.paint(e.what)
	switch e.what {
	case "state", "health", "image":
		return what + " " + l.paint(e.detail)
	}
	return strings.TrimSuffix(what+" "+e.detail, " ")
}

// eventStream prints the events of a directory.
type eventStream struct {
	c     *client
	dir   string
	flags *follow
	look  look

	began bool   // the past is printed
	last  uint64 // number of the last event that was read
	width int    // of the longest name so far
}

// past prints the events so far.
func (s *eventStream) past() error {
	text, err := read(s.dir + "/events")
	if err != nil {
		return err
	}
	text = s.flags.past(text)
	if !s.look.people {
		return s.c.print(text)
	}
	s.fitNames(text)
	var b strings.Builder
	now := time.Now()
	for _, line := range lines(text) {
		b.WriteString(s.line(line, &now) + "\n")
	}
	return s.c.print(b.String())
}

// fitNames makes room for the names in a text of events.
func (s *eventStream) fitNames(text string) {
	for _, line := range lines(text) {
		e, _ := parseEvent(line)
		s.width = max(s.width, len(e.vm))
	}
}

// line returns a line for people, with the age at a time unless that is nil.
func (s *eventStream) line(line string, now *time.Time) string {
	e, ok := parseEvent(line)
	if !ok {
		return line
	}
	s.width = max(s.width, len(e.vm))
	at := e.at.Format(time.DateTime)
	if now != nil {
		at += fmt.Sprintf("  %10s", ageText(now.Sub(e.at))+" ago")
	}
	return fmt.Sprintf("%s  %-*s  %s", s.look.with(faint, at), s.width, e.vm, s.look.happened(e))
}

// follow prints past and future events, each once, until the VM is removed, or until an error after
// which it can be called again.
func (s *eventStream) follow() (ended bool, err error) {
	// The stream is opened first, so that no event is missed. The numbers show which are in both.
	stream, err := open(s.dir+"/wait/events", os.O_RDONLY)
	if err != nil {
		return s.c.tree.ended(s.dir, err)
	}
	defer stream.Close()
	past, err := read(s.dir + "/events")
	if err != nil {
		return s.c.tree.ended(s.dir, err)
	}
	shown := past
	if !s.began { // after a restart of the daemon, all that is new
		shown = s.flags.past(past)
	}
	if s.look.people {
		s.fitNames(shown)
	}
	for _, line := range lines(shown) {
		if err := s.show(line); err != nil {
			return true, err
		}
	}
	for _, line := range lines(past) { // what --tail left out
		e, _ := parseEvent(line)
		s.last = max(s.last, e.seq)
	}
	s.began = true
	coming := bufio.NewScanner(stream)
	for coming.Scan() {
		if err := s.show(coming.Text()); err != nil {
			return true, err
		}
	}
	return s.c.tree.ended(s.dir, coming.Err())
}

// show prints a line, unless it was printed before.
func (s *eventStream) show(line string) error {
	if e, ok := parseEvent(line); ok {
		if e.seq <= s.last {
			return nil
		}
		s.last = e.seq
	}
	if s.look.people {
		line = s.line(line, nil)
	}
	_, err := fmt.Fprintln(s.c.std.out, line)
	return err
}
