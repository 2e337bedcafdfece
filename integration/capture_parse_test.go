package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// configOf returns the `config` of number n. Every setting follows from n, and every other text is
// long.
func configOf(n int64) string {
	words := strings.TrimSpace(strings.Repeat(fmt.Sprintf("n=%d ", n), 1+int(n%2)*150))
	net := []string{"bridge", "user", "none"}[n%3]
	return fmt.Sprintf("image builtin\ncpus %d\nmemory %d\ndisk %d\ncmdline %s\nvmm fake\nnet %s\n"+
		"autostart %d\nidle_timeout %d\nstop_timeout %d\nprotected %d\nisolate 1\nexpose_fs 0\n"+unlimited,
		1+n%256, 128<<20+n*4096, n*4096, words, net, n%2, n+1, n, n/2%2)
}

// unlimited are the settings that bound nothing.
const unlimited = "memory_target max\ncpu.max max 100000\ncpu.weight 100\nmemory.max max\n" +
	"pids.max max\nio.max rbps=max wbps=max riops=max wiops=max\nnet.max rx=max tx=max\n"

func parseConfig(text []byte, _, _ int64) (int64, error) {
	_, after, _ := strings.Cut(string(text), "\nstop_timeout ")
	digits, _, _ := strings.Cut(after, "\n")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err == nil && string(text) != configOf(n) {
		err = fmt.Errorf("mixed or cut: not the config of %d", n)
	}
	return n, err
}

// configJSONOf is its twin.
func configJSONOf(n int64) string {
	var b strings.Builder
	separator := "{"
	for _, line := range strings.Split(strings.TrimSuffix(configOf(n), "\n"), "\n") {
		key, value, _ := strings.Cut(line, " ")
		if _, err := strconv.ParseInt(value, 10, 64); err != nil {
			value = strconv.Quote(value)
		}
		fmt.Fprintf(&b, "%s%q:%s", separator, key, value)
		separator = ","
	}
	return b.String() + "}\n"
}

func parseConfigJSON(text []byte, _, _ int64) (int64, error) {
	_, after, _ := strings.Cut(string(text), `"stop_timeout":`)
	digits, _, _ := strings.Cut(after, ",")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err == nil && string(text) != configJSONOf(n) {
		err = fmt.Errorf("mixed or cut: not the config.json of %d", n)
	}
	return n, err
}

// listName returns the name of number n of the renamed VM. Every other name widens the column of
// `list`.
func listName(n int64) string {
	name := fmt.Sprintf("n-%d", n)
	if n%2 == 1 {
		name += "-" + strings.Repeat("x", 62-len(name))
	}
	return name
}

// numbered finds the one VM of listName's among names.
func numbered(names []string) (int64, error) {
	n := int64(-1)
	for _, name := range names {
		digits, _, _ := strings.Cut(strings.TrimPrefix(name, "n-"), "-")
		if !strings.HasPrefix(name, "n-") {
			continue
		}
		got, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || listName(got) != name || n >= 0 {
			return 0, fmt.Errorf("mixed: %s is there", name)
		}
		n = got
	}
	if n < 0 {
		return 0, errors.New("cut: the VM that is renamed is missing")
	}
	return n, nil
}

func parseList(vms int) parser {
	return func(text []byte, _, _ int64) (int64, error) {
		rows := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
		if len(rows) != vms || !bytes.HasSuffix(text, []byte("\n")) {
			return 0, fmt.Errorf("mixed or cut: %d rows for %d VMs", len(rows), vms)
		}
		var names []string
		widest, begins := 0, map[int]bool{}
		for _, row := range rows {
			name, rest, _ := strings.Cut(row, " ")
			names, widest = append(names, name), max(widest, len(name))
			begins[len(row)-len(strings.TrimLeft(rest, " "))] = true
			if f := strings.Fields(row); len(f) != 8 || f[7] != "builtin" {
				return 0, fmt.Errorf("mixed or cut: %q", row)
			}
		}
		if len(begins) != 1 || !begins[widest+2] {
			return 0, fmt.Errorf("mixed: the second column begins at %v", begins)
		}
		return numbered(names)
	}
}

func parseListJSON(vms int) parser {
	return func(text []byte, _, _ int64) (int64, error) {
		var rows []struct{ Name string }
		err := json.Unmarshal(text, &rows)
		if err != nil || len(rows) != vms || !bytes.HasSuffix(text, []byte("\n")) {
			return 0, fmt.Errorf("mixed or cut: %d rows for %d VMs, %v", len(rows), vms, err)
		}
		var names []string
		for _, row := range rows {
			names = append(names, row.Name)
		}
		return numbered(names)
	}
}

var oneTime = regexp.MustCompile(`^(\d+)\.(\d{3})\n$`)

// parseTime returns the milliseconds in a file of one time.
func parseTime(text []byte, _, _ int64) (int64, error) {
	m := oneTime.FindSubmatch(text)
	if m == nil {
		return 0, errors.New("cut")
	}
	return strconv.ParseInt(string(m[1])+string(m[2]), 10, 64)
}

// statsKeys are the keys of a fake VM's stats. The first capture lacks cpu_percent and its
// interval, a paused VM has no figures of the guest.
var statsKeys = strings.Fields(`collected state uptime cpu_percent cpu_interval cpu_usec
	rss_bytes vsz_bytes system_overlay_bytes
	disk_read_bytes disk_write_bytes disk_read_ops disk_write_ops
	guest_mem_total_bytes guest_mem_available_bytes guest_load1 guest_procs guest_uptime`)

// stats parses a fake VM's `stats`. All keys must be there, in their order.
func stats(text []byte) (map[string]string, error) {
	values := map[string]string{}
	var keys []string
	for _, line := range strings.SplitAfter(string(text), "\n") {
		if key, value, _ := strings.Cut(line, " "); strings.HasSuffix(value, "\n") {
			keys = append(keys, key)
			values[key] = strings.TrimSuffix(value, "\n")
		} else if line != "" {
			return nil, fmt.Errorf("cut at %q", line)
		}
	}
	var want []string
	for _, key := range statsKeys {
		optional := key == "cpu_percent" || key == "cpu_interval" ||
			values["state"] == "paused" && strings.HasPrefix(key, "guest_")
		if _, ok := values[key]; !ok && optional {
			continue
		}
		want = append(want, key)
	}
	if strings.Join(keys, " ") != strings.Join(want, " ") {
		return nil, fmt.Errorf("mixed or cut: it has %v, not %v", keys, want)
	}
	return values, nil
}

// parseStats returns a parser of the stats of a VM that runs since started. It returns the
// millisecond of the collection, which must fit all times of the capture.
func parseStats(started time.Time) parser {
	return func(text []byte, _, _ int64) (int64, error) {
		v, err := stats(text)
		if err != nil {
			return 0, err
		}
		if v["state"] != "running" {
			return 0, errors.New("not of a running VM")
		}
		collected, err1 := strconv.ParseFloat(v["collected"], 64)
		uptime, err2 := strconv.ParseFloat(v["uptime"], 64)
		guest, err3 := strconv.ParseFloat(v["guest_uptime"], 64)
		pages, err4 := strconv.ParseInt(v["disk_read_ops"], 10, 64)
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return 0, err
		}
		age := collected - float64(started.UnixMilli())/1000
		const rounding, longest = 0.02, 1.0
		if uptime > age+rounding || uptime < age-longest ||
			guest > uptime+rounding || guest < age-longest {
			return 0, fmt.Errorf("mixed: collected at an age of %.3f", age)
		}
		kB := strconv.FormatInt(pages*4096, 10)
		if v["disk_write_ops"] != v["disk_read_ops"] ||
			v["disk_read_bytes"] != kB || v["disk_write_bytes"] != kB {
			return 0, errors.New("mixed: the figures of the disk do not fit each other")
		}
		return int64(collected*1000 + 0.5), nil
	}
}

// parsePaused parses the stats of a VM that is paused with odd numbers and runs with even ones. It
// returns the least number from low on that the capture may have.
func parsePaused(text []byte, low, high int64) (int64, error) {
	v, err := stats(text)
	if err != nil {
		return 0, err
	}
	n := low
	if paused := v["state"] == "paused"; paused != (n%2 == 1) {
		n++
	}
	if n > high {
		return 0, fmt.Errorf("stale: of the state before %d", low)
	}
	return n, nil
}

// parseEvents returns the number of the last event. The numbers must grow.
func parseEvents(text []byte, _, _ int64) (int64, error) {
	last := int64(0)
	if !bytes.HasSuffix(text, []byte("\n")) {
		return 0, errors.New("cut at its end")
	}
	for _, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		f := strings.Fields(line)
		if len(f) < 4 || f[2] != "conf" {
			return 0, fmt.Errorf("mixed or cut: %q", line)
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || n <= last {
			return 0, fmt.Errorf("mixed: %q after event %d", line, last)
		}
		last = n
	}
	return last, nil
}
