package fake

import (
	"context"
	"slices"
	"time"

	"banger/vmm"
	"banger/vmm/guest"
)

// agent implements guest.Agent, guest.Freezer and guest.Clock.
type agent struct{ m *machine }

// answer blocks for as long as the script delays the agent.
func (g agent) answer(ctx context.Context) error {
	if g.m.script.agent == "never" {
		return vmm.ErrNoAgent
	}
	if err := g.m.awake(ctx); err != nil {
		return err
	}
	age, s := g.running(), &g.m.script
	if s.agent == "hang" || age >= s.deafFrom && age < s.deafTo {
		return g.m.wait(ctx, nil)
	}
	if g.m.script.slow <= 0 {
		return nil
	}
	answered := make(chan struct{})
	timer := time.AfterFunc(g.m.script.slow, func() { close(answered) })
	defer timer.Stop()
	return g.m.wait(ctx, answered)
}

func (g agent) running() time.Duration {
	g.m.mu.Lock()
	defer g.m.mu.Unlock()
	return g.m.age()
}

func (g agent) age() float64 { return g.running().Seconds() }

func (g agent) Ping(ctx context.Context) (guest.Info, error) {
	if err := g.answer(ctx); err != nil {
		return guest.Info{}, err
	}
	return guest.Info{Version: "fake", Kernel: "fake", Hostname: g.m.name, Uptime: g.age()}, nil
}

func (g agent) Listeners(ctx context.Context) ([]guest.Listener, error) {
	if err := g.answer(ctx); err != nil {
		return nil, err
	}
	return slices.Clone(g.m.script.listen), nil
}

func (g agent) Stats(ctx context.Context) (guest.Stats, error) {
	if err := g.answer(ctx); err != nil {
		return guest.Stats{}, err
	}
	g.m.mu.Lock()
	memory, left, disk := g.m.memory, g.m.memory, g.m.disk
	if target := g.m.kept.Target; target != 0 {
		left = min(left, target)
	}
	g.m.mu.Unlock()
	return guest.Stats{MemTotal: memory, MemAvailable: left / 2, Load1: 0.1, Procs: 10,
		Uptime: g.age(), DiskTotal: disk}, nil
}

func (g agent) Configure(ctx context.Context, _ guest.Config) error {
	return g.answer(ctx)
}

// Freeze implements guest.Freezer.
func (g agent) Freeze(ctx context.Context, _ time.Duration) (int, error) {
	if g.m.script.freeze == "hang" {
		return 0, g.m.wait(ctx, nil)
	}
	return 1, g.answer(ctx)
}

func (g agent) Thaw(ctx context.Context) (bool, error) {
	return g.m.script.freeze != "hang", g.answer(ctx)
}

func (g agent) PowerOff(ctx context.Context) error {
	if g.m.script.stop == "hang" {
		return g.m.wait(ctx, nil)
	}
	if err := g.answer(ctx); err != nil {
		return err
	}
	if g.m.script.stop != "ignore" {
		g.m.end(end{exit: poweredOff})
	}
	return nil
}
