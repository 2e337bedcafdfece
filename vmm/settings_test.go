package vmm

import (
	"reflect"
	"testing"
)

// Each field of Config belongs to one row, and each row reads what it shows.
func TestSettings(t *testing.T) {
	c := Config{Image: "debian", CPUs: 2, Memory: 3 << 20, Disk: 4, Cmdline: "quiet", VMM: "fake", Net: NetUser,
		Autostart: true, IdleTimeout: NoLimit, StopTimeout: 1500e6, Protected: true, Isolate: true, ExposeFS: true,
		Publish: "8080:80\n8443:443", AuthorizedKeys: "ssh-ed25519 AAAA a"}
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
	for field, v := range reflect.ValueOf(&c).Elem().Fields() {
		if owner[v.Addr().Interface()] == "" {
			t.Errorf("no setting has the field %s", field.Name)
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
		{func(c *Config) { c.IdleTimeout, c.Net = 1, NetNone }, []string{"net", "idle_timeout"}, false},
	} {
		after := old
		c.change(&after)
		if got, live := changedSettings(&old, &after); !reflect.DeepEqual(got, c.want) || live != c.live {
			t.Errorf("%v: got %v, live %v, want %v, %v", after, got, live, c.want, c.live)
		}
	}
	if _, live := changedSettings(&Config{}, &Config{Disk: 1}); live {
		t.Error("a disk can be added to a running VM")
	}
}
