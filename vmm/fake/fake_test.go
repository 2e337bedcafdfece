package fake

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"banger/vmm"
)

func spec(t *testing.T, cmdline string) *vmm.Spec {
	t.Helper()
	return &vmm.Spec{ID: "11111111-1111-4111-8111-111111111111", Name: "web", Dir: t.TempDir(), Config: vmm.Config{Cmdline: cmdline, Memory: 128 << 20}}
}

// start starts a machine whose notices come on the channel.
func start(t *testing.T, s *vmm.Spec) (vmm.Machine, chan vmm.Notice) {
	t.Helper()
	notices := make(chan vmm.Notice, 8)
	m, err := New().Start(context.Background(), s, func(n vmm.Notice) { notices <- n })
	if err != nil {
		t.Fatal(err)
	}
	return m, notices
}

func within(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatalf("waited in vain for %s", what)
	}
}

func TestScriptWords(t *testing.T) {
	for _, bad := range []string{"fake.boot=soon", "fake.start=maybe", "fake.agent=asleep", "fake.agent=deaf:2s", "fake.stop=never", "fake.listen=80", "fake.listen=x/tcp", "fake.disk=-1", "fake.exit=x", "fake.none=1"} {
		if _, err := parseScript(bad); !errors.Is(err, vmm.ErrInvalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	s, err := parseScript("quiet fake.boot=1s fake.listen=80/http/nginx,53/udp fake.poweroff=3s fake.exit=2s:gone root=/dev/vda")
	if err != nil {
		t.Fatal(err)
	}
	if first, ok := s.next(false); !ok || first.exit.Reason != "gone" || s.boot != time.Second || len(s.listen) != 2 || s.listen[0].Process != "nginx" {
		t.Errorf("%+v", s)
	}
}

func TestStartFailsAndIsGivenUp(t *testing.T) {
	if _, err := New().Start(context.Background(), spec(t, "fake.start=fail"), nil); err == nil {
		t.Error("a start that is to fail succeeds")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := New().Start(ctx, spec(t, "fake.boot=1h"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a start that is given up: %v", err)
	}
}

func TestEnds(t *testing.T) {
	for cmdline, want := range map[string]string{
		"fake.poweroff=10ms":      "exited 0: the guest powered itself off",
		"fake.exit=10ms:no_power": "exited 1: no_power",
		"fake.panic=10ms":         "exited 0: the guest's kernel panicked",
	} {
		m, notices := start(t, spec(t, cmdline))
		within(t, cmdline, m.Done())
		if got := m.Exit().String(); got != want || m.Exit().Orderly != strings.Contains(want, "off") {
			t.Errorf("%s ends with %+v", cmdline, m.Exit())
		}
		kind := (<-notices).Kind
		if kind == vmm.NoticePanic {
			kind = (<-notices).Kind
		}
		if kind != vmm.NoticeExited {
			t.Errorf("%s tells of %s last", cmdline, kind)
		}
	}
}

// A machine outlives its daemon: the next one finds it as it was, and only that one.
func TestAdopt(t *testing.T) {
	s := spec(t, "")
	m, _ := start(t, s)
	if err := m.Pause(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := New().Adopt(context.Background(), s, vmm.Process{}, func(vmm.Notice) {})
	if err != nil {
		t.Fatal(err)
	}
	if !again.Paused() {
		t.Error("the pause is forgotten")
	}
	if err := again.Kill(context.Background()); err != nil {
		t.Fatal(err)
	}
	within(t, "the kill", again.Done())
	if _, err := New().Adopt(context.Background(), s, vmm.Process{}, nil); !errors.Is(err, vmm.ErrNotFound) {
		t.Errorf("a killed machine is adopted: %v", err)
	}
}

func TestAgent(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	m, _ := start(t, spec(t, "fake.agent=never"))
	if _, err := m.Guest().Ping(ctx); !errors.Is(err, vmm.ErrNoAgent) {
		t.Errorf("no agent: %v", err)
	}
	m, _ = start(t, spec(t, "fake.agent=hang"))
	if _, err := m.Guest().Stats(ctx); !errors.Is(err, vmm.ErrTimeout) {
		t.Errorf("an agent that hangs: %v", err)
	}
	m, _ = start(t, spec(t, "fake.listen=80/tcp/httpd"))
	ls, err := m.Guest().Listeners(context.Background())
	if err != nil || len(ls) != 1 || ls[0].Port != 80 {
		t.Errorf("listeners %v, %v", ls, err)
	}
	if err := m.Guest().PowerOff(context.Background()); err != nil {
		t.Fatal(err)
	}
	within(t, "the power off", m.Done())
}
