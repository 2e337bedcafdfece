package fs

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"banger/vmm"
)

// settingKind says how a setting's value is shown beside the others.
type settingKind uint8

const (
	numeric settingKind = iota // in JSON, too
	word
	lineList // a list of entries, one per line: only a file of its own, not part of `config`
)

// setting is one of a VM's settings: how it is shown and read, in the file of
// its name as well as in `config`.
type setting struct {
	name string
	doc  string
	kind settingKind
	show func(*vmm.Config) string
	set  func(*vmm.Config, string) error
}

var settings = []setting{
	{"image", "name of a directory in images/", word,
		func(c *vmm.Config) string { return c.Image },
		func(c *vmm.Config, s string) error { c.Image = s; return nil }},
	{"cpus", "count of CPUs", numeric,
		func(c *vmm.Config) string { return strconv.Itoa(c.CPUs) },
		func(c *vmm.Config, s string) error {
			n, err := parseUint(s, 1<<16)
			c.CPUs = int(n)
			return err
		}},
	{"memory", "bytes of memory", numeric,
		func(c *vmm.Config) string { return strconv.FormatInt(c.Memory, 10) },
		func(c *vmm.Config, s string) (err error) { c.Memory, err = parseBytes(s); return err }},
	{"disk", "bytes of the VM's own writable disk", numeric,
		func(c *vmm.Config) string { return strconv.FormatInt(c.Disk, 10) },
		func(c *vmm.Config, s string) (err error) { c.Disk, err = parseBytes(s); return err }},
	{"cmdline", "appended to the kernel's command line", word,
		func(c *vmm.Config) string { return c.Cmdline },
		func(c *vmm.Config, s string) error { c.Cmdline = s; return nil }},
	{"vmm", "what runs the VM", word,
		func(c *vmm.Config) string { return c.VMM },
		func(c *vmm.Config, s string) error { c.VMM = s; return nil }},
	{"net", "bridge, user or none", word,
		func(c *vmm.Config) string { return string(c.Net) },
		func(c *vmm.Config, s string) error {
			switch mode := vmm.NetMode(s); mode {
			case vmm.NetBridge, vmm.NetUser, vmm.NetNone:
				c.Net = mode
				return nil
			}
			return fmt.Errorf("%.64q is not bridge, user or none: %w", s, vmm.ErrInvalid)
		}},
	{"autostart", "1: start it with the daemon", numeric,
		func(c *vmm.Config) string { return formatBool(c.Autostart) },
		func(c *vmm.Config, s string) (err error) { c.Autostart, err = parseBool(s); return err }},
	{"idle_timeout", "seconds without use until it is stopped, or max", numeric,
		func(c *vmm.Config) string { return formatDuration(c.IdleTimeout) },
		func(c *vmm.Config, s string) (err error) { c.IdleTimeout, err = parseDuration(s); return err }},
	{"stop_timeout", "seconds that a stop waits for the guest", numeric,
		func(c *vmm.Config) string { return formatDuration(c.StopTimeout) },
		func(c *vmm.Config, s string) (err error) { c.StopTimeout, err = parseDuration(s); return err }},
	{"protected", "1: rmdir gives EPERM", numeric,
		func(c *vmm.Config) string { return formatBool(c.Protected) },
		func(c *vmm.Config, s string) (err error) { c.Protected, err = parseBool(s); return err }},
	{"isolate", "1: it neither reaches nor is reached by other VMs", numeric,
		func(c *vmm.Config) string { return formatBool(c.Isolate) },
		func(c *vmm.Config, s string) (err error) { c.Isolate, err = parseBool(s); return err }},
	{"expose_fs", "1: ls lists the guest's files", numeric,
		func(c *vmm.Config) string { return formatBool(c.ExposeFS) },
		func(c *vmm.Config, s string) (err error) { c.ExposeFS, err = parseBool(s); return err }},
	{"publish", "ports of the host that lead into the guest, one per line", lineList,
		func(c *vmm.Config) string { return c.Publish },
		func(c *vmm.Config, s string) error { c.Publish = listLines(s); return nil }},
	{"authorized_keys", "ssh keys that may log in, one per line", lineList,
		func(c *vmm.Config) string { return c.AuthorizedKeys },
		func(c *vmm.Config, s string) error { c.AuthorizedKeys = listLines(s); return nil }},
}

// settingFiles makes a row of each setting.
func settingFiles() []file {
	var rows []file
	for _, s := range settings {
		row := file{
			name: s.name, mode: 0o640, doc: s.doc,
			show: func(r *request) ([]byte, error) { return line(s.show(&r.snap().Config)) },
			store: func(r *request, text string) error {
				return r.configure(func(c *vmm.Config) error {
					if s.kind == lineList && r.more { // bash writes each line of an echo by itself
						text = s.show(c) + "\n" + text
					}
					return s.set(c, text)
				})
			},
		}
		if s.name == "image" {
			row.store = imageStore
		}
		rows = append(rows, row)
	}
	return rows
}

func imageStore(r *request, text string) error {
	return r.detached(func(ctx context.Context) error { return r.vm.SetImage(ctx, text) })
}

func (r *request) configure(change func(*vmm.Config) error) error {
	return r.detached(func(ctx context.Context) error { return r.vm.Configure(ctx, change) })
}

func configPairs(c *vmm.Config) []pair {
	var pairs []pair
	for _, s := range settings {
		if s.kind == lineList {
			continue
		}
		text := s.show(c)
		p := pair{key: s.name, value: text}
		if s.kind == numeric && text != noLimit {
			p = pair{s.name, json.Number(text), text}
		}
		pairs = append(pairs, p)
	}
	return pairs
}

func configShow(r *request) ([]byte, error)     { return flat(configPairs(&r.snap().Config)), nil }
func configJSONShow(r *request) ([]byte, error) { return object(configPairs(&r.snap().Config)) }

func configStore(r *request, text string) error {
	return r.configure(func(c *vmm.Config) error { return applyConfig(c, text) })
}

// applyConfig sets what the `key value` lines of text say; after an error c is to be thrown away.
func applyConfig(c *vmm.Config, text string) error {
	for _, l := range strings.Split(text, "\n") {
		key, value, _ := strings.Cut(strings.TrimSpace(l), " ")
		if key == "" {
			continue
		}
		s := findSetting(key)
		if s == nil {
			return fmt.Errorf("%.64q is not a setting: %w", key, vmm.ErrInvalid)
		}
		if s.kind == lineList {
			return fmt.Errorf("%s is a list: write its own file: %w", key, vmm.ErrInvalid)
		}
		if err := s.set(c, strings.TrimSpace(value)); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

// listLines gives the lines of a list without the white space around them, and without empty ones.
func listLines(text string) string {
	var kept []string
	for _, l := range strings.Split(text, "\n") {
		if l = strings.TrimSpace(l); l != "" {
			kept = append(kept, l)
		}
	}
	return strings.Join(kept, "\n")
}

func findSetting(name string) *setting {
	for i := range settings {
		if settings[i].name == name {
			return &settings[i]
		}
	}
	return nil
}
