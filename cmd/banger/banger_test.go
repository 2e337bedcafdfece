package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/sources"
)

// layout makes a plain directory that looks like the tree: what only files are cannot be refused,
// but it can be read and written.
func layout(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "vms"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func web(t *testing.T) string {
	return layout(t, map[string]string{
		"list":                "web running healthy\n",
		"list.json":           "[]\n",
		"stats":               "vms 1\n",
		"vms/web/state":       "running\n",
		"vms/web/error":       "",
		"vms/web/health":      "healthy\n",
		"vms/web/address":     "172.30.0.2\n",
		"vms/web/stats":       "state running\n",
		"vms/web/stats.json":  "{}\n",
		"vms/web/ports":       "http  80  http://172.30.0.2:80/\n",
		"vms/web/ports.json":  `[{"scheme":"http"}]` + "\n",
		"vms/web/log":         "one\ntwo\n",
		"vms/web/wait/tcp/80": "3.5\n", "vms/web/wait/healthy": "2.41\n",
		"vms/db/state": "stopped\n", "vms/db/error": "",
		"vms/db/restore": "", "vms/db/snapshots/one/size": "4096\n",
		"vms/db/snapshots/one/created": "1790000000.5\n",
		"vms/db/snapshots/one/state":   "running\n", "vms/db/snapshots/one/frozen": "1\n",
	})
}

func banger(root string, args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	code = run(append([]string{"--mount", root}, args...), stdio{strings.NewReader(""), &o, &e})
	return code, o.String(), e.String()
}

func TestCommands(t *testing.T) {
	root := web(t)
	for _, x := range []struct {
		args     string
		code     int
		out, err string // substrings; exact where they end in a line feed
	}{
		{"ls", exitOK, "web running healthy\n", ""},
		{"ls --json", exitOK, "[]\n", ""},
		{"status", exitOK, "vms 1\n", ""},
		{"status web", exitOK, "health healthy\naddress 172.30.0.2\nstate running\n", ""},
		{"status web --json", exitOK, "{}\n", ""},
		{"ports web", exitOK, "http  80  http://172.30.0.2:80/\n", ""},
		{"ports --json web", exitOK, "[{\"scheme\":\"http\"}]\n", ""},
		{"logs web", exitOK, "one\ntwo\n", ""},
		{"wait web", exitOK, "2.41\n", ""},
		{"wait web tcp/080 --timeout 10s", exitOK, "3.5\n", ""},
		{"wait web purple", exitUsage, "", "tcp/PORT"},
		{"wait web tcp/0", exitUsage, "", "tcp/PORT"},
		{"wait web tcp/65536", exitUsage, "", "tcp/PORT"},
		{"wait gone", exitNoVM, "", "no VM is called gone"},
		{"start", exitUsage, "", "requires at least 1 arg"},
		{"start a/b", exitUsage, "", `"a/b" is no name`},
		{"start gone", exitNoVM, "", "banger: no VM is called gone\n"},
		{"start gone ..", exitNoVM, "", "no name of a VM"},
		{"purple", exitUsage, "", "banger: unknown command \"purple\" for \"banger\"; `banger --help` lists all\n"},
		{"stpo web", exitUsage, "", "banger: unknown command \"stpo\" for \"banger\"; did you mean stop?\n"},
		{"rm --help", exitOK, "  -f, --force         ", ""},
		{"image pul x", exitUsage, "", "banger: unknown command \"pul\" for \"banger image\"; did you mean pull?\n"},
		{"start weeb", exitNoVM, "", "banger: no VM is called weeb; did you mean web?\n"},
		{"snapshot rm db onee", exitFailed, "", "banger: db has no snapshot onee; did you mean one?\n"},
		{"ls --purple", exitUsage, "", "unknown flag"},
		{"run web", exitFailed, "", "web exists already"},
		{"ports db", exitNoVM, "", "cannot list the ports of db"},
		{"snapshot ls db --json", exitOK, `[{"name":"one","created":1790000000.5,"size":4096,"state":"running","frozen":1}]` + "\n", ""},
		{"snapshot ls db", exitOK, "4096  running  frozen", ""},
		{"snapshot create db one", exitFailed, "", "db has a snapshot one already"},
		{"snapshot create db a/b", exitUsage, "", "no name of a snapshot"},
		{"snapshot create db two", exitOK, "", ""},
		{"snapshot rm db two", exitOK, "", ""},
		{"snapshot rm db two", exitFailed, "", "db has no snapshot two"},
		{"snapshot rm db", exitUsage, "", "requires at least 2 arg"},
		{"snapshot restore db one", exitOK, "", ""},
		{"snapshot restore gone one", exitNoVM, "", "no VM is called gone"},
		{"__complete snapshot rm db o", exitOK, "one\n", ""},
		{"--help", exitOK, exitHelp, ""},
		{"image pull --help", exitOK, "disk:PATH", ""},
		{"__complete start web d", exitOK, "db\n", ""},
		{"__complete ports web d", exitOK, ":4", ""},
	} {
		code, out, errs := banger(root, strings.Fields(x.args)...)
		fits := func(got, want string) bool {
			if strings.HasPrefix(x.args, "__") || !strings.HasSuffix(want, "\n") {
				return strings.Contains(got, want)
			}
			return got == want
		}
		if code != x.code || !fits(out, x.out) || !fits(errs, x.err) {
			t.Errorf("banger %s: %d\n%s%s", x.args, code, out, errs)
		}
	}
}

// TestHelpOfSources finds every kind of source in the help, with what it names.
func TestHelpOfSources(t *testing.T) {
	for _, command := range []string{"image", "image pull"} {
		_, out, _ := banger(t.TempDir(), append(strings.Fields(command), "--help")...)
		for _, k := range sources.Kinds {
			form, doc := regexp.QuoteMeta(k.Form), regexp.QuoteMeta(k.Doc)
			if !regexp.MustCompile(`(?m)^  ` + form + ` +` + doc + `$`).MatchString(out) {
				t.Errorf("banger %s --help does not tell of %s:\n%s", command, k.Form, out)
			}
		}
	}
}

func TestNoDaemon(t *testing.T) {
	for _, args := range []string{"ls", "status web", "run web", "stop web", "status"} {
		code, _, errs := banger(t.TempDir(), strings.Fields(args)...)
		if code != exitNoDaemon || !strings.Contains(errs, "is it running?") {
			t.Errorf("banger %s: %d %s", args, code, errs)
		}
	}
}

func TestStateWordsAreWritten(t *testing.T) {
	root := web(t)
	for _, word := range []string{"start", "stop", "restart", "kill", "pause", "resume"} {
		if code, _, errs := banger(root, word, "web", "db"); code != exitOK {
			t.Fatal(word, code, errs)
		}
		for _, vm := range []string{"web", "db"} {
			if b, _ := os.ReadFile(filepath.Join(root, "vms", vm, "state")); string(b) != word+"\n" {
				t.Errorf("%s: state is %q", word, b)
			}
		}
	}
}

// TestRefusal lets the kernel refuse (a directory cannot be written, one with files not removed)
// and sees the daemon's sentence told.
func TestRefusal(t *testing.T) {
	root := web(t)
	state := filepath.Join(root, "vms/web/state")
	os.Remove(state)
	os.Mkdir(state, 0o755)
	os.WriteFile(filepath.Join(root, "vms/web/error"), []byte("cannot stop web: the moon is full\n"), 0o644)
	code, _, errs := banger(root, "stop", "web", "db")
	if code != exitFailed || errs != "banger: cannot stop web: the moon is full\n" {
		t.Error(code, errs)
	}
	if b, _ := os.ReadFile(filepath.Join(root, "vms/db/state")); string(b) != "stop\n" {
		t.Error("db was not tried")
	}
	code, _, errs = banger(root, "rm", "db")
	if code != exitFailed || !strings.Contains(errs, "cannot remove db: directory not empty") {
		t.Error(code, errs)
	}
	os.WriteFile(filepath.Join(root, "error"), []byte("cannot remove db: it is running\n"), 0o644)
	if _, _, errs = banger(root, "rm", "-f", "db"); errs != "banger: cannot remove db: it is running\n" {
		t.Error(errs)
	}
	if b, _ := os.ReadFile(filepath.Join(root, "vms/db/state")); string(b) != "kill\n" {
		t.Error("rm -f did not kill")
	}
	if err := os.Mkdir(filepath.Join(root, "vms/empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	if code, _, errs = banger(root, "rm", "empty"); code != exitOK {
		t.Error(code, errs)
	}
}

func TestRunLeavesNoVMUnconfigured(t *testing.T) {
	root := web(t)
	code, _, errs := banger(root, "run", "new", "-c", "2")
	if code == exitOK || !strings.Contains(errs, "cannot configure new") {
		t.Error(code, errs)
	}
	if _, err := os.Stat(filepath.Join(root, "vms/new")); err == nil {
		t.Error("the VM was left")
	}
}

func TestWaitTimeout(t *testing.T) {
	root := web(t)
	fifo := filepath.Join(root, "vms/web/wait/running")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errs := banger(root, "wait", "web", "running", "--timeout", "20ms")
	if code != exitTimeout || !strings.Contains(errs, "web is not running after 20ms") {
		t.Error(code, errs)
	}
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0) // frees the reader that was left
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func TestCodeOf(t *testing.T) {
	for errno, want := range map[syscall.Errno]int{
		syscall.ENOENT: exitNoVM, syscall.EBUSY: exitState, syscall.EHOSTDOWN: exitState,
		syscall.ETIMEDOUT: exitTimeout,
		syscall.ENOTCONN:  exitNoDaemon, syscall.EINVAL: exitFailed, syscall.EACCES: exitFailed,
	} {
		if got := exitCode(explain("x", "", &os.PathError{Err: errno})); got != want {
			t.Errorf("%v: %d, want %d", errno, got, want)
		}
	}
}

func TestRelay(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	in, typing := io.Pipe()
	out, screen := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- relay(in, near, screen) }()
	step := func(w io.Writer, r io.Reader, text string) {
		t.Helper()
		go io.WriteString(w, text)
		buf := make([]byte, len(text))
		if _, err := io.ReadFull(r, buf); err != nil || string(buf) != text {
			t.Fatalf("%q %v", buf, err)
		}
	}
	step(far, out, "login: ")
	step(typing, far, "root\x03\n") // Ctrl-C is the guest's
	go io.WriteString(typing, "x\x1dy")
	b := make([]byte, 10)
	if n, _ := far.Read(b); string(b[:n]) != "x" {
		t.Fatalf("%q before the leave key", b[:n])
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	far.Close()
}

func TestDefaultMount(t *testing.T) {
	t.Setenv("BANGER_MOUNT", "/somewhere")
	if got := defaultMount(); got != "/somewhere" {
		t.Error(got)
	}
}

func TestBoot(t *testing.T) {
	root := web(t)
	dir := filepath.Join(root, "vms/web")
	if err := os.WriteFile(filepath.Join(dir, "config"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	c := &client{std: stdio{strings.NewReader(""), &out, &errs}, tree: tree(root)}
	v := vm{"web", dir}
	if err := c.configure(v, &runOrder{settings: "cpus 2\nmemory 192M\n"}); err != nil {
		t.Fatal(err)
	}
	got, err := c.boot(v, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if got != "web is healthy after 2.41 s at 172.30.0.2" || out.Len()+errs.Len() != 0 {
		t.Errorf("%q %q %q", got, out.String(), errs.String())
	}
	for file, want := range map[string]string{"config": "cpus 2\nmemory 192M\n", "state": "start\n"} {
		if b, _ := os.ReadFile(filepath.Join(dir, file)); string(b) != want {
			t.Errorf("%s is %q", file, b)
		}
	}
}
