package main

import "sync"

// modes is the mode that the guest is in.
type modes struct {
	mu      sync.Mutex
	name    string        // guarded by mu
	changed chan struct{} // guarded by mu; closed at the next set
}

func newModes(name string) *modes { return &modes{name: name, changed: make(chan struct{})} }

func (m *modes) set(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.name = name
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *modes) now() string {
	name, _ := m.watch()
	return name
}

// watch also gives a channel that is closed when the mode changes.
func (m *modes) watch() (string, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.name, m.changed
}
