package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Deleted rules are restored at once. If they are deleted again soon, a growing pause precedes that:
// two programs that fight cost little.
const (
	leastPause = time.Second
	mostPause  = 10 * time.Second
)

// pauses grow with each that follows soon on another.
type pauses struct {
	length time.Duration
	last   time.Time
}

func (p *pauses) next() time.Duration {
	p.length = min(2*p.length, mostPause)
	if time.Since(p.last) > 2*mostPause {
		p.length = leastPause
	}
	p.last = time.Now()
	return p.length
}

// notifications are a socket on which the kernel reports changes of nftables tables.
type notifications interface {
	Receive() ([]syscall.NetlinkMessage, *unix.SockaddrNetlink, error)
	Close()
}

func subscribe() (notifications, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, fmt.Errorf("cannot be told of changes of the nftables tables: %w", err)
	}
	return s, nil
}

// watch begins to look after the tables until unwatch; n.mu is held.
func (n *Network) watch() error {
	if n.unwatch != nil {
		return nil
	}
	s, err := subscribe()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	n.unwatch = func() {
		cancel()
		<-done
	}
	go func() {
		defer close(done)
		n.keep(ctx, s, subscribe)
	}()
	return nil
}

// keep restores the tables until ctx ends. A socket that fails is replaced after a pause, since
// its error may stay.
func (n *Network) keep(ctx context.Context, s notifications, again func() (notifications, error)) {
	pause := &pauses{}
	for {
		err := n.restoreOn(ctx, s, pause)
		for s = nil; s == nil; {
			if ctx.Err() != nil {
				return
			}
			length := pause.next()
			n.unguarded(length, err)
			if !sleep(ctx, length) {
				return
			}
			s, err = again()
		}
		n.restore(ctx, pause) // what was changed meanwhile
	}
}

// restoreOn restores the tables on the kernel's notifications, which costs nothing while nobody
// changes any table. It returns the socket's error, with the socket closed.
func (n *Network) restoreOn(ctx context.Context, s notifications, pause *pauses) error {
	stop := context.AfterFunc(ctx, s.Close)
	defer func() {
		if stop() {
			s.Close()
		}
	}()
	for {
		messages, _, err := s.Receive()
		look := errors.Is(err, unix.ENOBUFS) // there were more than the socket holds
		if err != nil && !look {
			return err
		}
		for _, m := range messages {
			look = look || n.concerns(m.Header.Type, m.Data)
		}
		if look {
			n.restore(ctx, pause)
		}
	}
}

// restore puts the tables back until they stay.
func (n *Network) restore(ctx context.Context, pause *pauses) {
	for {
		put, err := n.putBack()
		if !put && err == nil {
			return
		}
		length := pause.next()
		if err != nil {
			n.unguarded(length, err)
		}
		if !sleep(ctx, length) {
			return
		}
	}
}

func (n *Network) unguarded(pause time.Duration, err error) {
	n.o.Log.Error("what guests send may not be filtered: our nftables tables cannot be looked after",
		"table", tablePrefix+n.o.Bridge, "again in", pause, "err", err)
}

// sleep reports whether the time has passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// concerns reports whether a notification is about our tables, and not about elements of sets, which
// change all the time. After a header of 4 bytes each notification has the table's name
// (linux/netfilter/nfnetlink.h, nf_tables.h).
func (n *Network) concerns(kind uint16, body []byte) bool {
	const header, table = 4, 1 // NFTA_TABLE_NAME, NFTA_CHAIN_TABLE and so on
	if kind>>8 != unix.NFNL_SUBSYS_NFTABLES || len(body) < header {
		return false
	}
	switch kind & 0xff {
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM, unix.NFT_MSG_NEWGEN:
		return false
	}
	attributes, err := nl.ParseRouteAttr(body[header:])
	return err == nil && len(attributes) > 0 && attributes[0].Attr.Type&typeMask == table &&
		string(bytes.TrimRight(attributes[0].Value, "\x00")) == tablePrefix+n.o.Bridge
}

// putBack makes the tables again if rules are missing, and reports whether it did. Without the bridge,
// as after Cleanup, it does nothing.
func (n *Network) putBack() (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, err := netlink.LinkByName(n.o.Bridge); errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, nil
	}
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	whole := true
	for _, ch := range n.chains() {
		rules, err := c.GetRules(n.table(ch.family), &nftables.Chain{Name: ch.name}) // none where there is no such chain
		if err != nil {
			return false, fmt.Errorf("cannot list the rules of %s: %w", ch.name, err)
		}
		whole = whole && len(rules) >= len(ch.rules)
	}
	if whole {
		return false, nil
	}
	return true, n.remake()
}

// remake makes the tables that somebody else changed again; n.mu is held.
func (n *Network) remake() error {
	n.o.Log.Warn("our nftables tables were changed by somebody else: making them again", "table", tablePrefix+n.o.Bridge)
	return n.apply()
}
