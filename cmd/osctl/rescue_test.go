package main

import (
	"os"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kapernikov/osctl/pkg/device"
	"github.com/kapernikov/osctl/pkg/ledger"
	"github.com/kapernikov/osctl/pkg/proof"
)

// committed DIR notes in the history that this image was committed here once.
func committedOnce(ts *testscript.TestScript, neg bool, args []string) {
	s := of(ts)
	ts.Check(ledger.Open(s.path("data/osctl")).Update(func(l *ledger.Ledger) error {
		l.Add(ledger.Event{Kind: "committed", Slot: device.SlotB, Version: s.images[args[0]].Version, Digest: layoutDigest(s, ts.MkAbs(args[0]))})
		return nil
	}))
	ts.Check(s.remember())
}

// keep A|B DIR leaves the machine with that image committed in a slot, and with
// the record of it that staging keeps.
func keep(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: keep A|B DIR")
	}
	s, name := of(ts), device.Slot(args[0])
	img := s.images[args[1]]
	source, err := openSource(s.Context(), ts.MkAbs(args[1]), "")
	ts.Check(err)
	described, err := source.offer.Describe(s.Context())
	ts.Check(err)
	sigs, err := source.offer.Signatures(s.Context())
	ts.Check(err)
	ts.Check(source.close())
	reference := ts.Getenv("REG") + "/gateway/os:" + img.Version
	ts.Check(proof.Open(s.path("data/osctl")).Keep(name, proof.New(described, sigs, reference)))
	if _, made := s.images[args[1]]; !made {
		img = running // its bytes are no matter
		img.Version = described.Config().Version
	}
	ts.Check(os.WriteFile(s.slotFile(name), append(img.Raw(), make([]byte, (slotMiB-img.MiB)<<20)...), 0o644))
	at := time.Unix(1_800_000_000, 0).UTC()
	ts.Check(ledger.Open(s.path("data/osctl")).Update(func(l *ledger.Ledger) error {
		c := described.Config()
		l.Slots[name] = &ledger.Entry{
			Digest: described.Digest().String(), Product: c.Product, Version: c.Version, Epoch: c.Epoch, Created: c.Created,
			Reference: reference, SignedBy: "release", State: ledger.Committed, StagedAt: at, CommittedAt: at,
		}
		return nil
	}))
	ts.Check(s.remember())
}

// damage FILE OFFSET [LENGTH] overwrites bytes of a file, one by default.
func damage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: damage FILE OFFSET [LENGTH]")
	}
	length := int64(1)
	if len(args) == 3 {
		length = number(ts, args[2])
	}
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	for off := number(ts, args[1]); length > 0; off, length = off+1, length-1 {
		p := []byte{0}
		_, err := f.ReadAt(p, off)
		ts.Check(err)
		p[0] ^= 0x5a
		_, err = f.WriteAt(p, off)
		ts.Check(err)
	}
	ts.Check(f.Close())
}

func number(ts *testscript.TestScript, text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	ts.Check(err)
	return n
}
