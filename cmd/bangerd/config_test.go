package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestConfig(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", ""},
		{"nat = \"on\"\nmemory = \"256M\"\nidle_timeout = \"15m\"\nsubnet = \"10.0.0.0/24\"\n" +
			"stats_max_age = \"2s\"\n", ""},
		{"nat = true\nidle_timeout = \"max\"\n", ""},
		{"cpus = 1\n  colour = 3\n", ":2: unknown key \"colour\""},
		{"\n[net]\nx = 1\n", ":2: unknown key \"net"},
		{"cpus = \n", ":1: "},
		{"nat = \"maybe\"\n", "neither \"on\" nor \"off\""},
		{"subnet6 = \"fd00::/64\"\nlan = \"on\"\nmtu = 9000\nuplink = \"eth0\"\n" +
			"isolate = false\n", ""},
		{"subnet6 = \"auto\"\nmtu = \"auto\"\nuplink = \"auto\"\nqemu = \"auto\"\n" +
			"machine = \"auto\"\n", ""},
		{"mtu = \"much\"\n", "much is neither a number nor"},
		{"uplink = 3\n", "3 is no text"},
		{"subnet6 = \"off\"\n", ""},
		{"subnet6 = \"fd00::/48\"\n", "fd00::/48 is none of"},
		{"subnet6 = \"10.0.0.0/24\"\n", "none of"},
		{"mtu = 100\n", "mtu = 100"},
		{"cpus = 0\n", ":1: cpus must be 1 to 256, not 0"},
		{"accel = \"xen\"\n", "none of auto"},
		{"memory = \"9999999999T\"\n", "not a number of bytes"},
		{"idle_timeout = \"-1s\"\n", "is not a time"},
		{"isolate = 7\n", ":1: isolate: 7 is neither"},
		{"Image = \"debian\"\nCPUs = 2\n", ""},
		{"nat = true\n[image]\n", ":2: image is neither a text nor a number"},
		{"stop_timeout = \"48h\"\n", ":1: stop_timeout must be 0 to 86400 seconds"},
		{"idle_timeout = 0\n", ":1: idle_timeout must be more than 0 seconds"},
		{"cpus = 2\nautostart = 1\n", ":2: unknown key \"autostart\""},
		{"dns = false\nhosts_file = \"/etc/hosts\"\n", ""},
		{"hosts_file = \"hosts\"\n", "neither off nor an absolute path"},
		{"quota_vms = 5\nquota_cpus = \"max\"\nquota_memory = \"8G\"\nquota_disk = \"auto\"\n", ""},
		{"quota_vms = -1\n", "is not a number"},
		{"quota_cpus = \"4K\"\n", "is not a number"},
		{"quota_memory = \"lots\"\n", "is not a number of bytes"},
		{"overcommit_memory = 1.5\n", ""},
		{"overcommit_memory = \"max\"\n", ""},
		{"overcommit_memory = 0\n", "0 is neither a number above 0"},
		{"overcommit_memory = nan\n", "neither a number above 0"},
		{"overcommit_memory = \"1\"\n", "neither a number above 0"},
	} {
		path := filepath.Join(t.TempDir(), "config.toml")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := readConfig(path, true)
		if (err != nil) != (c.want != "") ||
			err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want %q", c.text, err, c.want)
		}
	}
	if _, err := readConfig("/nonexistent/x", true); err == nil {
		t.Error("an absent file that the user named is accepted")
	}
	c, err := readConfig("/nonexistent/x", false)
	if err != nil || c.VM.StopTimeout != 10*time.Second {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestDefaultPaths(t *testing.T) {
	env := map[string]string{"HOME": "/home/u"}
	get := func(k string) string { return env[k] }
	_, err := defaultPaths(false, get)
	if err == nil || !strings.Contains(err.Error(), "XDG_RUNTIME_DIR") {
		t.Error(err)
	}
	env["XDG_RUNTIME_DIR"] = "/run/user/5"
	p, err := defaultPaths(false, get)
	want := paths{"/run/user/5/banger", "/home/u/.local/state/banger",
		"/home/u/.config/banger/config.toml"}
	if err != nil || p != want {
		t.Errorf("%v, %v", p, err)
	}
}

func TestConfigText(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	text := "image = \"debian\"\nmemory = \"256M\"\nidle_timeout = \"15m\"\n" +
		"stop_timeout = 2\nisolate = \"off\"\nnat = true\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := readConfig(path, true)
	if err != nil {
		t.Fatal(err)
	}
	shown := c.text(paths{"/m", "/s", "/c"})
	for _, line := range []string{"mount /m", "image debian", "cpus 1", "memory 268435456",
		"idle_timeout 900", "stop_timeout 2", "isolate off", "nat on", "lan off", "mtu auto",
		"uplink auto", "stats_max_age 1", "subnet 172.30.0.0/16", "metrics_listen off"} {
		if !strings.Contains(shown, line+"\n") {
			t.Errorf("no line %q in\n%s", line, shown)
		}
	}
}

// The manual has every key.
func TestConfigManual(t *testing.T) {
	manual, err := os.ReadFile("../../docs/bangerd.8.md")
	if err != nil {
		t.Fatal(err)
	}
	c := defaultConfig()
	for line := range strings.Lines(c.text(paths{})) {
		key, _, _ := strings.Cut(line, " ")
		path := key == "mount" || key == "state_dir" || key == "config"
		if !path && !strings.Contains(string(manual), "**"+key+"**") {
			t.Errorf("docs/bangerd.8.md lacks %s", key)
		}
	}
}

// The configuration that is installed has every key, commented out, with its default.
func TestInstalledConfig(t *testing.T) {
	const installed = "../../contrib/package/config.toml"
	if c, err := readConfig(installed, true); err != nil || c != defaultConfig() {
		t.Errorf("as it is installed: %+v, %v", c, err)
	}
	text, err := os.ReadFile(installed)
	if err != nil {
		t.Fatal(err)
	}
	comments := regexp.MustCompile(`(?m)^#([a-z0-9_]+ = )`)
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, comments.ReplaceAll(text, []byte("$1")), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := readConfig(path, true)
	if err != nil {
		t.Fatal(err)
	}
	def := defaultConfig()
	if got, want := c.text(paths{}), def.text(paths{}); got != want {
		t.Errorf("without the # in front of settings:\n%s\nwant\n%s", got, want)
	}
	for line := range strings.Lines(def.text(paths{})) {
		key, _, _ := strings.Cut(line, " ")
		path := key == "mount" || key == "state_dir" || key == "config"
		if count := strings.Count(string(text), "\n#"+key+" = "); !path && count != 1 {
			t.Errorf("%s has %d lines of %s", installed, count, key)
		}
	}
}

// FuzzValues expects that each accepted value is shown as text that means the same.
func FuzzValues(f *testing.F) {
	for _, text := range []string{"on", "off", "auto", "fd12:3456:789a::/64", "fd00::1/64"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var prefix, shown subnet6
		if prefix.UnmarshalTOML(text) == nil {
			if err := shown.UnmarshalTOML(prefix.String()); err != nil || shown != prefix {
				t.Errorf("%q is shown as %s, which is %v, %v", text, prefix, shown, err)
			}
		}
		var flag, sameFlag onOff
		if flag.UnmarshalTOML(text) == nil {
			if err := sameFlag.UnmarshalTOML(flag.String()); err != nil || sameFlag != flag {
				t.Errorf("%q is shown as %s, which is %v, %v", text, flag, sameFlag, err)
			}
		}
	})
}
