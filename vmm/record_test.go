package vmm

import (
	"context"
	"errors"
	"testing"
	"time"
)

// slowStore passes each update to the test and waits for its permission.
type slowStore struct {
	Store
	asked  chan Record
	permit chan error
}

func (s slowStore) Update(_ context.Context, r *Record) error {
	s.asked <- *r
	return <-s.permit
}

// A commit keeps what changes without the turn meanwhile.
func TestCommitKeepsWhatChangesMeanwhile(t *testing.T) {
	store := slowStore{asked: make(chan Record), permit: make(chan error)}
	m := &Manager{o: Options{Store: store}, ledger: newLedger(&Options{})}
	v := m.newVM(Record{Serial: 1, State: Running, Error: "old", Touched: time.Unix(1, 0)})
	result := make(chan error)
	chown := func() {
		result <- v.Chown(t.Context(), func(o Owner) (Owner, error) { o.UID++; return o, nil })
	}
	go chown()
	<-store.asked
	used := time.Unix(2, 0)
	v.SetTouched(used)
	v.publish(func(s *Snapshot) {
		s.Ready, s.ReadyIn, s.Error = true, time.Second, "new"
		s.Saved = append(s.Saved, DiskSnapshot{Name: "before"})
	})
	store.permit <- nil
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	s := v.Snapshot()
	if s.Owner.UID != 1 || !s.Ready || s.ReadyIn != time.Second || s.Error != "new" ||
		!s.Touched.Equal(used) || len(s.Saved) != 1 {
		t.Errorf("after the commit: %+v", *s)
	}
	// The next commit records the changes. One that fails shows nothing.
	go chown()
	if r := <-store.asked; r.Owner.UID != 2 || r.Error != "new" || !r.Touched.Equal(used) {
		t.Errorf("recorded: %+v", r)
	}
	refused := errors.New("no space")
	store.permit <- refused
	if err := <-result; !errors.Is(err, refused) {
		t.Errorf("a commit that failed: %v", err)
	}
	if s := v.Snapshot(); s.Owner.UID != 1 || !s.Ready {
		t.Errorf("after a commit that failed: %+v", *s)
	}
}
