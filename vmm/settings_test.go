package vmm

import (
	"errors"
	"os"
	"path"
	"reflect"
	"strings"
	"testing"
)

// Each field of Config belongs to one row, and each row reads what it shows.
func TestSettings(t *testing.T) {
	c := Config{Image: "debian", CPUs: 2, Memory: 3 << 20, Disk: 4, Cmdline: "quiet",
		VMM: "fake", Net: NetUser, Autostart: true, IdleTimeout: NoLimit, StopTimeout: 1500e6,
		Protected: true, Isolate: true, ExposeFS: true,
		Publish: "8080:80\n8443:443", AuthorizedKeys: "ssh-ed25519 AAAA a", MemoryTarget: 64 << 20,
		Limits: Limits{CPUMax: CPUMax{20e6, 50e6}, CPUWeight: 7, MemoryMax: 1 << 30, PIDsMax: 99,
			IOMax: IOMax{1, 2, 3, 4}, NetMax: NetMax{1 << 20, 1 << 21}}}
	owner := make(map[any]string)
	var again Config
	for i := range Settings {
		s := &Settings[i]
		if other, ok := owner[s.Field(&c)]; ok || FindSetting(s.Name) != s {
			t.Errorf("%s repeats the name or the field of %q", s.Name, other)
		}
		owner[s.Field(&c)] = s.Name
		if err := s.Set(&again, s.Show(&c)); err != nil {
			t.Errorf("%s shows %q, which is refused: %v", s.Name, s.Show(&c), err)
		}
	}
	if again != c {
		t.Errorf("got %+v, want %+v", again, c)
	}
	for _, of := range []any{&c, &c.Limits} {
		for field, v := range reflect.ValueOf(of).Elem().Fields() {
			if owner[v.Addr().Interface()] == "" && !field.Anonymous {
				t.Errorf("no setting has the field %s", field.Name)
			}
		}
	}
}

func TestChangedSettings(t *testing.T) {
	old := Config{CPUs: 1, Disk: 1 << 20}
	for _, c := range []struct {
		change func(*Config)
		want   []string
		live   bool
	}{
		{func(*Config) {}, nil, true},
		{func(c *Config) { c.CPUs = 2 }, []string{"cpus"}, false},
		{func(c *Config) { c.Disk <<= 1; c.Protected = true }, []string{"disk", "protected"}, true},
		{func(c *Config) { c.IdleTimeout, c.Net = 1, NetNone },
			[]string{"net", "idle_timeout"}, false},
	} {
		after := old
		c.change(&after)
		got, live := changedSettings(&old, &after)
		if !reflect.DeepEqual(got, c.want) || live != c.live {
			t.Errorf("%+v: got %v, live %v, want %v, %v", after, got, live, c.want, c.live)
		}
	}
	if _, live := changedSettings(&Config{}, &Config{Disk: 1}); live {
		t.Error("a disk can be added to a running VM")
	}
}

// The table of settings in docs/files.md has the rows of Settings in their order. They agree about
// the settings that are live and about the defaults.
func TestSettingsManual(t *testing.T) {
	manual, err := os.ReadFile("../docs/files.md")
	if err != nil {
		t.Fatal(err)
	}
	const head = "| file | live | value | default |\n|---|---|---|---|\n"
	_, text, ok := strings.Cut(string(manual), head)
	if !ok {
		t.Fatal("docs/files.md has no table of settings")
	}
	rows := strings.Split(text, "\n")
	for i := range Settings {
		s := &Settings[i]
		cells := strings.Split(rows[i], " |")
		if len(cells) != 5 || cells[0] != "| `"+path.Join(s.Dir, s.Name)+"`" {
			t.Errorf("row %d is %q, want the setting %s", i+1, rows[i], s.Name)
			continue
		}
		if live := strings.TrimSpace(cells[1]) != ""; live != (s.live != nil) {
			t.Errorf("%s is live there: %v", s.Name, live)
		}
		// Memory 0 stands for what the image needs.
		if !strings.Contains(cells[3], s.Default) && s.Name != "memory" {
			t.Errorf("the default of %s is %q there, not %s", s.Name, cells[3], s.Default)
		}
	}
}

// What a setting accepts it shows as text that means the same.
func FuzzSettings(f *testing.F) {
	for _, text := range []string{
		"", "0", "1", "192M", "1.5T", "max", "15m", "user", "8080:80\n", "a  b ",
		"20000 50000", "max 100000", "100", "rbps=1M wiops=max", "rx=1M tx=2M",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for i := range Settings {
			s := &Settings[i]
			var c, again Config
			if err := s.Set(&c, text); err != nil {
				if !errors.Is(err, ErrInvalid) || c != (Config{}) {
					t.Errorf("%s of %q: %v, %+v", s.Name, text, err, c)
				}
				continue
			}
			if err := s.Set(&again, s.Show(&c)); err != nil || again != c {
				t.Errorf("%s of %q is shown as %q, which is %+v, %v",
					s.Name, text, s.Show(&c), again, err)
			}
		}
	})
}
