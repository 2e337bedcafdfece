package fs

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"banger/internal/value"
	"banger/vmm"
)

// settingFiles returns a row for each setting of a directory, of the VM's own for "".
func settingFiles(dir string) []file {
	var rows []file
	for i := range vmm.Settings {
		s := &vmm.Settings[i]
		if s.Dir != dir {
			continue
		}
		row := file{
			name: s.Name, mode: 0o640, doc: s.Help,
			show: func(r *request) ([]byte, error) { return line(s.Show(&r.snap().Config)) },
			store: func(r *writeRequest, text string) error {
				return r.configure(func(c *vmm.Config) error {
					if s.Kind.List && r.more { // bash writes each line of an echo by itself
						text = s.Show(c) + "\n" + text
					}
					return s.Set(c, text)
				})
			},
		}
		if s.Told {
			row.told = asWritten
		}
		if s.Name == "image" {
			row.store = imageStore
		}
		rows = append(rows, row)
	}
	return rows
}

func imageStore(r *writeRequest, text string) error {
	return r.detached(func(ctx context.Context) error { return r.vm.SetImage(ctx, text) })
}

func (r *request) configure(change func(*vmm.Config) error) error {
	return r.detached(func(ctx context.Context) error { return r.vm.Configure(ctx, change) })
}

func configPairs(c *vmm.Config) []pair {
	var pairs []pair
	for i := range vmm.Settings {
		s := &vmm.Settings[i]
		if s.Kind.List {
			continue
		}
		text := s.Show(c)
		p := pair{key: s.Name, value: text}
		if s.Kind.Number && text != value.Max {
			p = pair{s.Name, json.Number(text), text}
		}
		pairs = append(pairs, p)
	}
	return pairs
}

func configShow(r *request) ([]byte, error)     { return flat(configPairs(&r.snap().Config)), nil }
func configJSONShow(r *request) ([]byte, error) { return object(configPairs(&r.snap().Config)) }

func configStore(r *writeRequest, text string) error {
	return r.configure(func(c *vmm.Config) error { return applyConfig(c, text) })
}

// applyConfig sets the settings of `key value` lines. After an error c is useless.
func applyConfig(c *vmm.Config, text string) error {
	for l := range strings.SplitSeq(text, "\n") {
		key, rest, _ := strings.Cut(strings.TrimSpace(l), " ")
		if key == "" {
			continue
		}
		s := vmm.FindSetting(key)
		if s == nil {
			return fmt.Errorf("%.64q is not a setting: %w", key, vmm.ErrInvalid)
		}
		if s.Kind.List {
			return fmt.Errorf("%s is a list: write its own file: %w", key, vmm.ErrInvalid)
		}
		if err := s.Set(c, strings.TrimSpace(rest)); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}
