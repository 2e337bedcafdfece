package guest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// cut bounds s to n bytes and makes it valid UTF-8.
func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "")
}

// maxFloat is more than any guest's load or uptime. Sums of such numbers do not overflow, as JSON
// has no number for infinity.
const maxFloat = 1e12

func bounded(f float64) float64 { return min(max(f, 0), maxFloat) }

func parseInfo(b []byte) (Info, error) {
	var i Info
	if err := json.Unmarshal(b, &i); err != nil {
		return Info{}, fmt.Errorf("cannot read the agent's answer: %w", err)
	}
	for _, s := range []*string{&i.Version, &i.Kernel, &i.Hostname} {
		*s = cut(*s, maxString)
	}
	i.Uptime = bounded(i.Uptime)
	return i, nil
}

// parseListeners reads at most maxListeners rows and ignores the rest.
func parseListeners(b []byte) ([]Listener, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	t, err := d.Token()
	if err != nil || t != json.Delim('[') {
		return nil, fmt.Errorf("cannot read the agent's answer: not a list of listeners")
	}
	var all []Listener
	for d.More() && len(all) < maxListeners {
		var l Listener
		if err := d.Decode(&l); err != nil {
			return nil, fmt.Errorf("cannot read the agent's answer: %w", err)
		}
		l.Protocol, l.Address = cut(l.Protocol, maxString), cut(l.Address, maxString)
		l.Process, l.Command = cut(l.Process, maxString), cut(l.Command, maxString)
		all = append(all, l)
	}
	if len(all) < maxListeners {
		if _, err := d.Token(); err != nil {
			return nil, fmt.Errorf("cannot read the agent's answer: %w", err)
		}
	}
	return all, nil
}

func parseStats(b []byte) (Stats, error) {
	var s Stats
	if err := json.Unmarshal(b, &s); err != nil {
		return Stats{}, fmt.Errorf("cannot read the agent's answer: %w", err)
	}
	s.MemTotal, s.MemAvailable = max(s.MemTotal, 0), max(s.MemAvailable, 0)
	s.Load1, s.Uptime, s.Procs = bounded(s.Load1), bounded(s.Uptime), max(s.Procs, 0)
	s.DiskUsed, s.DiskTotal = max(s.DiskUsed, 0), max(s.DiskTotal, 0)
	return s, nil
}
