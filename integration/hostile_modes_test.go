package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode"
)

// misbehaviour is a mode of the guest and the content of its files in that mode.
type misbehaviour struct {
	mode   string
	ports  []error // errnos that the read may return; empty if it must succeed
	rows   string  // the rows of a successful read as scheme/port, in order
	silent bool    // the agent's figures are missing in stats
	health string  // regular expression
}

var (
	eio          = []error{syscall.EIO}
	timeout      = []error{syscall.ETIMEDOUT}
	eioOrTimeout = []error{syscall.EIO, syscall.ETIMEDOUT}
)

var misbehaviours = []misbehaviour{
	{mode: "servers", health: "healthy",
		rows: "http/80 http/81 http/84 https/443 tcp/82 tcp/83 tcp/85 tcp/444 tcp/445"},
	{mode: "elsewhere", health: "healthy",
		rows: "http/8090 tcp/8091 tcp/8092 tcp/8093 tcp/8094 tcp/8095 tcp/8096 tcp/8097"},
	{mode: "text", rows: "udp/1 udp/2 udp/3 udp/4", health: "healthy"},
	{mode: "numbers", rows: "udp/1 udp/65535", health: "healthy"},
	{mode: "many", rows: manyRows(), health: "healthy"},
	{mode: "overflow", ports: eio, silent: true, health: "unhealthy cannot .*"},
	{mode: "nested", ports: eio, silent: true, health: "unhealthy cannot .*"},
	{mode: "broken", ports: eio, silent: true, health: "unhealthy cannot .*"},
	{mode: "curse", ports: eio, silent: true, health: `unhealthy cannot .*\\x1b\[31mred.*`},
	{mode: "endless", ports: eio, silent: true, health: "unhealthy cannot .*"},
	{mode: "babble", ports: eio, silent: true, health: "unhealthy cannot .*"},
	{mode: "noise", ports: eioOrTimeout, silent: true, health: "unhealthy .*"},
	{mode: "streams", ports: eio, silent: true, health: "unhealthy cannot .*"},
	{mode: "pings", ports: eioOrTimeout, silent: true, health: "unhealthy .*"},
	{mode: "silent", ports: timeout, silent: true, health: "unhealthy .*in time"},
	{mode: "drip", ports: timeout, silent: true, health: "unhealthy .*in time"},
	{mode: "crawl", ports: timeout, silent: true, health: "unhealthy .*in time"},
}

// manyRows returns the first 4,096 of the guest's 100,000 rows.
func manyRows() string {
	rows := make([]string, 4096)
	for i := range rows {
		rows[i] = fmt.Sprintf("tcp/%d", 1024+i)
	}
	return strings.Join(rows, " ")
}

// wrong returns how s differs from the expected content, "" if it does not.
func (m *misbehaviour) wrong(s seen) string {
	for _, f := range []struct {
		name string
		err  error
	}{{"ports", s.portsErr}, {"ports.json", s.portsJSONErr}} {
		fits := len(m.ports) == 0 && f.err == nil
		for _, errno := range m.ports {
			fits = fits || errors.Is(f.err, errno)
		}
		if !fits {
			return fmt.Sprintf("%s returns %v, not %v", f.name, f.err, m.ports)
		}
	}
	if len(m.ports) == 0 {
		if rows := rowsOf(s.ports); rows != m.rows {
			return "ports has the rows " + rows
		}
		if !regexp.MustCompile("^" + m.health + "$").MatchString(s.health) {
			return "health is " + s.health
		}
		var twin []struct {
			Scheme string
			Port   int
		}
		err := json.Unmarshal([]byte(s.portsJSON), &twin)
		rows := make([]string, len(twin))
		for i, p := range twin {
			rows[i] = fmt.Sprintf("%s/%d", p.Scheme, p.Port)
		}
		if err != nil || strings.Join(rows, " ") != m.rows {
			return fmt.Sprintf("ports.json has the rows %s (%v)", rows, err)
		}
	}
	if m.silent == strings.Contains(s.stats, "\nguest_") {
		return "stats is " + s.stats
	}
	if s.statsErr != nil {
		return "stats, stats.json or health fail: " + s.statsErr.Error()
	}
	if !json.Valid([]byte(s.statsJSON)) {
		return "stats.json is " + s.statsJSON
	}
	if !regexp.MustCompile("^" + m.health + "$").MatchString(s.health) {
		return "health is " + s.health
	}
	return ""
}

// rowsOf returns the first two columns of ports.
func rowsOf(ports string) string {
	var rows []string
	for _, row := range strings.Split(ports, "\n") {
		if f := strings.Fields(row); len(f) >= 2 {
			rows = append(rows, f[0]+"/"+f[1])
		} else {
			rows = append(rows, strconv.Quote(row))
		}
	}
	return strings.Join(rows, " ")
}

// seen holds the content of a VM's files, read side by side.
type seen struct {
	ports, portsJSON, stats, statsJSON, health string
	portsErr, portsJSONErr, statsErr           error
	slowest                                    time.Duration
}

// look reads the files side by side.
func look(d *daemon, vm string) seen {
	var s seen
	var healthErr, statsJSONErr error
	var wg sync.WaitGroup
	var mu sync.Mutex // guards s.slowest
	for _, f := range []struct {
		name string
		text *string
		err  *error
	}{
		{"ports", &s.ports, &s.portsErr}, {"ports.json", &s.portsJSON, &s.portsJSONErr},
		{"stats", &s.stats, &s.statsErr}, {"stats.json", &s.statsJSON, &statsJSONErr},
		{"health", &s.health, &healthErr},
	} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			needed := took(func() { *f.text, *f.err = read(d.path(vm, f.name)) })
			mu.Lock()
			s.slowest = max(s.slowest, needed)
			mu.Unlock()
		}()
	}
	wg.Wait()
	s.statsErr = errors.Join(s.statsErr, statsJSONErr, healthErr) // no guest makes these fail
	return s
}

// checkPrintable reports characters that could control a terminal.
func checkPrintable(t *testing.T, name, text string) {
	t.Helper()
	for i, r := range text {
		printable := unicode.IsPrint(r) || strings.HasSuffix(name, ".json") && r >= ' '
		if r != '\n' && !printable {
			t.Errorf("%s has the character %q after %q", name, r, text[max(0, i-100):i])
			return
		}
	}
}
