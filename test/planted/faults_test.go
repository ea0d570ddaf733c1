package planted

import "slices"

// faults is the list. A check that decides about trust has a line here.
func faults() []fault {
	return slices.Concat(
		trustFaults(), proofFaults(), imageFaults(), machineFaults(), rehearsalFaults(),
		gateFaults(), workloadFaults(), verdictFaults(), shownFaults(), heldFaults(), spaceFaults(), probeFaults(),
		bootFaults(),
	)
}

// trustFaults are in what signatures are worth.
func trustFaults() []fault {
	return []fault{
		{
			"signature result ignored", "trust/key.go", "			if err == nil {\n				return k, nil\n			}", "			if claim := (*claimError)(nil); !errors.As(err, &claim) {\n				return k, nil\n			}",
			"trust TestVerifyRefuses", false,
		},
		{"claim verification off", "trust/key.go", "ClaimVerifier: verifyClaim,", "ClaimVerifier: nil,", "trust TestVerifyRefuses", false},
		{"threshold counts signatures instead of keys", "trust/trust.go", "case !slices.ContainsFunc(by.ids, func(id string) bool { return seen[id] }):", "case true:", "trust TestThresholdCountsKeys", false},
		{"payload of two meanings", "trust/key.go", "osimage.Unmarshal(raw, &claim); err != nil {", "osimage.Unmarshal(raw, &claim); err != nil && !strings.Contains(err.Error(), \"key\") {", "trust TestVerifyRefuses", true},
		{"a certified key counts for itself too", "trust/trust.go", "\"person \" + who.exact, \"key \" + who.key}", "\"person \" + who.exact}", "trust TestIdentityOfAKeyOfThePolicy", true},
		{"revocation ignored", "trust/trust.go", "case revoked:\n", "case revoked && false:\n", "trust TestRevokedKey", false},
		{"revoked digest ignored", "trust/trust.go", "case v.digests[img.Digest()]:", "case false:", "trust TestRevokedDigest", true},
		{"expiry of a key off", "trust/key.go", "case now.After(k.notAfter):", "case false:", "trust TestKeyWithATimeRange", false},
		{
			"first match turned into any match", "trust/trust.go", "	if j.refusal != nil {\n		return Verified{}, j.refusal\n	}\n",
			"	for i := 0; j.refusal != nil && i < len(v.rules); i++ {\n		one := *v\n		one.rules = v.rules[i : i+1]\n		if other, err := one.judge(ctx, img, sigs, false); err == nil {\n			j = other\n		}\n	}\n	if j.refusal != nil {\n		return Verified{}, j.refusal\n	}\n",
			"trust TestFirstMatchDecides", false,
		},
		{"statements are not verified", "channel/channel.go", "g.Verifier.VerifyDigest(ctx, doc.Digest, s.Issued, doc.Signatures); err != nil", "g.Verifier.VerifyDigest(ctx, doc.Digest, s.Issued, doc.Signatures); false", "channel TestCheck", true},
		{"expiry of a statement off", "channel/channel.go", "!now.Before(end)", "false", "channel TestCheck", false},
		{"an older statement is good", "channel/channel.go", "s.Issued.Before(seen.Issued) ||", "false ||", "channel TestCheck", true},
		{"the tag may lead elsewhere", "channel/channel.go", "if s.Digest != head {", "if false {", "channel TestCheck", true},
	}
}

// proofFaults are in bundles, in what a certificate has to prove, and in attestations.
func proofFaults() []fault {
	return []fault{
		{"bundle's signature result ignored", "trust/exhibit.go", "verify.NewPolicy(about, verify.WithKey())); err == nil {", "verify.NewPolicy(about, verify.WithKey())); err == nil || result == nil {", "trust TestBundleByEachKindOfKey", true},
		{"bundle's subject off", "trust/exhibit.go", "verify.NewPolicy(about, verify.WithKey())", "verify.NewPolicy(func() verify.ArtifactPolicyOption { _ = about; return verify.WithoutArtifactUnsafe() }(), verify.WithKey())", "trust TestBundleRefused TestAttestations", true},
		{"an attestation counts as a signature", "trust/exhibit.go", "return x.classic != nil || x.predicate == osimage.PredicateSignature", "return true", "trust TestBundleRefused TestAttestations", true},
		{"identity off", "trust/identity.go", "candidate.root == i.root && candidate.match.Verify(*s) == nil", "candidate.root == i.root", "trust TestIdentityRefuses", true},
		{"issuer off", "trust/identity.go", "NewShortCertificateIdentity(i.Issuer, issuer,", "NewShortCertificateIdentity(\"\", \".*\"+issuer[:0],", "trust TestIdentityRefuses", true},
		{"pattern for a part of the name", "trust/identity.go", "whole := `\\A(?:` + pattern + `)\\z`", "whole := pattern", "trust TestIdentityPatterns", true},
		{"log proof off", "trust/identity.go", "verify.WithTransparencyLog(1), ", "", "trust TestIdentityRefuses", true},
		{"certificate judged by the clock", "trust/identity.go", "verify.WithObserverTimestamps(1)}", "verify.WithCurrentTime()}", "trust TestIdentityAccepts TestIdentityRefuses", true},
		{"no timestamp where there is no log", "trust/identity.go", "verify.WithSignedTimestamps(1)", "verify.WithCurrentTime()", "trust TestIdentityWithoutLog", true},
		{"a root that proves no time", "trust/identity.go", "case len(material.RekorLogs()) == 0 && len(material.TimestampingAuthorities()) == 0:", "case false:", "trust TestIdentityPolicies", true},
		{"a timestamp of something else", "publish/timestamp.go", "!bytes.Equal(stamp.HashedMessage, sum[:])", "len(sum) == 0", "publish TestTimestampsAreChecked", true},
		{"a timestamp given before", "publish/timestamp.go", "stamp.Nonce == nil || stamp.Nonce.Cmp(nonce) != 0", "stamp.Nonce == nil", "publish TestTimestampsAreChecked", true},
		{"a timestamp outside the certificate", "publish/timestamp.go", "case stamp.Time.Before(c.leaf.NotBefore) || stamp.Time.After(c.leaf.NotAfter):", "case false:", "publish TestTimestampsAreChecked", true},
		{"a timestamp by nobody", "publish/timestamp.go", "case len(stamp.Certificates) == 0:", "case false:", "publish TestTimestampsAreChecked", true},
		{"a certificate of another key", "publish/certificate.go", "cryptoutils.EqualKeys(public, leaf.PublicKey); err != nil", "cryptoutils.EqualKeys(public, leaf.PublicKey); err != nil && len(leaf.Raw) == 0", "publish TestCertificatesAreChecked", true},
		{"a certificate that ended", "publish/certificate.go", "case now.After(leaf.NotAfter):", "case false:", "publish TestCertificatesAreChecked", true},
		{"a chain of another authority", "publish/certificate.go", "}); err != nil {\n		return nil, err\n	}\n	return cryptoutils.Marshal", "}); err != nil && len(list) == 0 {\n		return nil, err\n	}\n	return cryptoutils.Marshal", "publish TestCertificatesAreChecked", true},
		{"mark of the log of certificates off", "trust/identity.go", "if len(material.CTLogs()) > 0 {", "if false {", "trust TestIdentityCertificateLog", true},
		{"claim of an identity off", "trust/trust.go", "claimBy(verifyClaim(x.classic, hash, j.rule.annotations), who.identity.Name)", "nil", "trust TestIdentityRefuses", true},
		{"attestations not asked for", "trust/trust.go", "		if !ok {\n			j.refusal", "		if !ok && false {\n			j.refusal", "trust TestAttestations", true},
		{"builder off", "trust/attestation.go", "have != a.builder", "have == \"nobody\"", "trust TestAttestations", true},
	}
}

// imageFaults are in what comes from a registry.
func imageFaults() []fault {
	return []fault{
		{"digest comparison off", "osimage/osimage.go", "digest.FromBytes(raw); got != desc.Digest", "digest.FromBytes(raw); got == \"\"", "osimage TestParseChecksDigests", false},
		{"digest of a config off", "osimage/osimage.go", "got != m.Config.Digest", "got == \"\"", "osimage TestParseChecksDigests", true},
		{"tag resolved twice", "fetch/fetch.go", "	raw, err := readSmall(ctx, r.source, r.desc, osimage.MaxManifest)\n", "	if again, ok := r.source.(repository); ok {\n		if now, err := again.Resolve(ctx, r.name); err == nil {\n			r.desc = now.desc\n		}\n	}\n	raw, err := readSmall(ctx, r.source, r.desc, osimage.MaxManifest)\n", "fetch TestTagIsAskedForOnce TestTagMoves", false},
		{"JSON of two meanings", "osimage/unambiguous.go", "return unambiguous(raw, reflect.TypeOf(v))", "return nil", "osimage TestUnmarshalRefusesWhatIsAmbiguous TestSignedDocumentsAreUnambiguous", true},
		{"size cap of a pack off", "osimage/validate.go", "p.Size <= 0 || p.Size > MaxPack", "false", "osimage TestParseRefuses", false},
		{"size cap of a body off", "fetch/body.go", "case b.read > b.limit:", "case false:", "fetch TestMisbehaviour", true},
		{"minimum rate off", "fetch/body.go", "time.AfterFunc(b.pace.within-b.spent,", "time.AfterFunc(b.pace.within-b.spent+1<<62,", "fetch TestMisbehaviour", true},
		{"a withheld list taken for none", "fetch/registry.go", "len(list) == 0 && t.withheld != nil", "len(list) < 0", "fetch TestWithheldList TestMirrorWithholdsTheList", true},
		{"a mirror says what a tag means", "fetch/registry.go", "return !h.Capabilities.Has(docker.HostCapabilityResolve)", "return h.Host == \"\"", "fetch TestMirrorIsNotAskedForTags", true},
		{"a broken list is passed over", "fetch/fetch.go", "	if failed != nil {\n", "	if failed != nil && len(e.found) == 0 {\n", "fetch TestBrokenBundlesHideNobody", true},
		{"classic signatures first", "fetch/fetch.go", "{r.bundles, tagged(osimage.SignatureTag(r.desc.Digest))}", "{tagged(osimage.SignatureTag(r.desc.Digest)), r.bundles}", "fetch TestSignatureRequests", true},
		{"any answer taken for no list", "fetch/guard.go", "t.withheld = refusal(resp.StatusCode)", "t.withheld = nil", "fetch TestWithheldList", true},
		{"a repository is written in any way", "fetch/registry.go", "|| !written.MatchString(name) || spec.String() != name", "", "fetch TestReferences", true},
		{"whatever lies in a layout is opened", "fetch/layout.go", "err == nil && !info.Mode().IsRegular()", "err == nil && info == nil", "fetch TestLayoutOfOtherThings", true},
		{"two members of one name", "fetch/layout.go", "_, twice := a.members[name]; twice", "_, twice := a.members[name]; twice && false", "fetch TestArchiveMembers", true},
		{"an index of any length", "fetch/layout.go", "n > maxEntries", "n < 0", "fetch TestLayoutIndexes", true},
		{"pre-releases of longer numbers are no pre-releases", "osimage/validate.go", "return comparePre(x.Prerelease(), y.Prerelease()), nil", "return x.Compare(y), nil", "osimage TestCompareVersions", true},
		{"segment hash off", "assemble/checking.go", "return sha256.Sum256(d.data) == want", "return want != [sha256.Size]byte{}", "assemble TestCorruptPacks", false},
	}
}

// machineFaults are in what this machine permits.
func machineFaults() []fault {
	return []fault{
		{"floor of the version ignored", "admit/admit.go", "if order < 0 {\n		return m.Downgrade", "if order < 0 && false {\n		return m.Downgrade", "admit TestDecide", false},
		{"floor of the epoch ignored", "admit/admit.go", "if c.Epoch < m.FloorEpoch {", "if false {", "admit TestDecide", true},
		{"floor of the slots ignored", "upgrade/upgrade.go", "range r.Committed {", "range r.Committed[:0] {", "upgrade TestFloorIsTheHighest", true},
		{"floor raised before the commit", "ledger/ledger.go", "		e.State = Failed\n", "		e.State = Failed\n		l.Floor = e.Floor()\n", "ledger TestFloorRisesAtCommitOnly", true},
		{"product ignored", "admit/admit.go", "if c.Product != m.Product {", "if false {", "admit TestDecide", false},
		{"architecture ignored", "admit/admit.go", "if c.Architecture != m.Architecture {", "if false {", "admit TestDecide", true},
		{"a downgrade that no policy permits", "admit/admit.go", "case !d.Permitted:", "case false:", "admit TestDecide", true},
		{"a downgrade to what was never here", "admit/admit.go", "case d.Committed == nil || !d.Committed(img.Digest().String()):", "case false:", "admit TestDecide", true},
		{"time moved by a clock", "ledger/ledger.go", "l.Pass(e.Created)", "l.Pass(at)", "ledger TestPassedRisesAtCommitOnly", true},
		{"certificates judged by the clock", "fetch/registry.go", "t.TLSClientConfig.Time = w.present", "_ = w.present", "fetch TestCertificatesAreJudgedAtThePresent", true},
	}
}

// rehearsalFaults are in what is found out of a system before it is armed.
func rehearsalFaults() []fault {
	return []fault{
		{"what the rehearsal finds refuses nothing", "rehearsal/rehearsal.go", "case len(r.Failed) > 0:", "case false:", "rehearsal TestDecide", false},
		{"always goes on without a rehearsal", "rehearsal/rehearsal.go", "len(r.Unfinished) > 0 || err != nil", "false", "rehearsal TestDecide", true},
		{"a slot that stays busy is no matter", "rehearsal/rehearsal.go", "errors.Is(err, ErrBusy)", "false", "rehearsal TestDecide", true},
		{"all that fails was known", "rehearsal/judge.go", "before != nil && before.Failed && !before.Late:", "before != nil || now.Failed:", "rehearsal TestJudge", false},
		{"units that cannot be started are no matter", "rehearsal/judge.go", "case dead.MatchString(line), ", "case dead.MatchString(line) && false, ", "rehearsal TestJudge", true},
		{"an own unit may be ignored", "rehearsal/judge.go", "strings.HasPrefix(path, \"/etc/\") && own(path):", "path == \"none\":", "rehearsal TestJudge", true},
		{"what is old is new", "rehearsal/judge.go", "case old[anywhere(line)]:", "case false:", "rehearsal TestJudge", true},
		{"a check that was killed has passed", "rehearsal/judge.go", "case now.Late:", "case false:", "rehearsal TestJudge", true},
		{"a clash is not named", "rehearsal/judge.go", "if names(said, path) || reads", "if path == said || reads", "rehearsal TestClashes", true},
		{"a refusal of the rehearsal is armed", "upgrade/rehearse.go", "		return fmt.Errorf(\"rehearsing slot %s: %w\", s, err)\n", "		_ = fmt.Errorf\n", "upgrade TestFailuresOnTheWay", true},
		{"the slot is not held again", "upgrade/rehearse.go", "target, err := r.OpenSlot(s)", "target, err := Target(nil), error(nil)", "upgrade TestRehearsal", true},
	}
}
