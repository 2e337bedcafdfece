package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What somebody takes from our tables is put back at once, and when he takes it again soon only after a pause, which grows: two who fight cost little.
const (
	leastPause = time.Second
	mostPause  = 10 * time.Second
)

// watch begins to look after the tables until unwatch; n.mu is held.
func (n *Network) watch() error {
	if n.unwatch != nil {
		return nil
	}
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return fmt.Errorf("cannot be told of changes of the nftables tables: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	n.unwatch = func() {
		cancel()
		s.Close()
		<-done
	}
	go func() {
		defer close(done)
		n.keep(ctx, s)
	}()
	return nil
}

// keep sleeps until the kernel tells of a change, which costs nothing while nobody changes any table.
func (n *Network) keep(ctx context.Context, s *nl.NetlinkSocket) {
	pause := leastPause
	var last time.Time
	for {
		messages, _, err := s.Receive()
		if ctx.Err() != nil {
			return
		}
		look := err != nil // ENOBUFS: there were more than the socket holds
		for _, m := range messages {
			look = look || n.concerns(m.Header.Type, m.Data)
		}
		for look {
			put, err := n.putBack()
			if !put && err == nil {
				break
			}
			if pause = min(2*pause, mostPause); time.Since(last) > 2*mostPause {
				pause = leastPause
			}
			last = time.Now()
			if err != nil {
				n.o.Log.Error("what guests send may not be filtered: our nftables tables cannot be looked after", "table", tablePrefix+n.o.Bridge, "again in", pause, "err", err)
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
		}
	}
}

// concerns reports whether a notification is of our tables and of more than sets' elements, which we change all the time
// (linux/netfilter/nfnetlink.h and nf_tables.h: after a header of 4 bytes comes, in all that is in a table, its name).
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

// putBack makes the tables again when something of their rules is missing, and reports whether that was so. Where the bridge is gone, as after
// Cleanup, there is nothing to look after.
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
