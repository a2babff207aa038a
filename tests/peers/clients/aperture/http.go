package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"

	"github.com/lightninglabs/aperture/l402"
	"github.com/lightninglabs/lndclient"
	"github.com/lightningnetwork/lnd/lntypes"
	"github.com/lightningnetwork/lnd/zpay32"
	"gopkg.in/macaroon.v2"
)

// What came of buying with the package's parts, by a client that speaks plain HTTP.
type fetched struct {
	// What the unpaid request was answered.
	Asked int
	// With what SetHeader sets: the credential twice, by its old name and by its new one.
	First, Second answer
	// The same in the headers that lnd's own clients use, with the preimage in the token.
	Macaroon, GrpcMetadataMacaroon answer
	// That token where SetHeader puts it, as lnget sends it: the preimage is in it and beside it.
	ProvenTwice    answer
	Hash, Preimage string
}

type answer struct {
	Status int
	Body   string
}

// The package has this to itself, for the interceptor: a challenge that it doesn't match can't be paid by loop or pool.
var challenge = regexp.MustCompile(`(LSAT|L402) macaroon="(.*?)", invoice="(.*?)"`)

func overHTTP(ctx context.Context, at *places, lnd *lndclient.LndServices) (any, error) {
	asked, err := http.Get(at.gateway)
	if err != nil {
		return nil, err
	}
	asked.Body.Close()
	token, invoice, err := read(asked.Header)
	if err != nil {
		return nil, err
	}
	hash, err := agreedHash(token, invoice, lnd)
	if err != nil {
		return nil, err
	}
	paid := <-lnd.Client.PayInvoice(ctx, invoice, maxFee, nil)
	if paid.Err != nil {
		return nil, paid.Err
	}

	did := fetched{Asked: asked.StatusCode, Hash: hash.String(), Preimage: paid.Preimage.String()}
	header := http.Header{}
	if err := l402.SetHeader(&header, token, paid.Preimage); err != nil {
		return nil, err
	}
	for _, into := range []*answer{&did.First, &did.Second} {
		if *into, err = get(at.gateway, header); err != nil {
			return nil, err
		}
	}

	proven := token.Clone()
	proof := l402.NewCaveat(l402.PreimageKey, paid.Preimage.String())
	if err := l402.AddFirstPartyCaveats(proven, proof); err != nil {
		return nil, err
	}
	metadata, err := l402.NewMacaroonCredential(proven, true).GetRequestMetadata(ctx)
	if err != nil {
		return nil, err
	}
	header = http.Header{}
	if err := l402.SetHeader(&header, proven, paid.Preimage); err != nil {
		return nil, err
	}
	if did.ProvenTwice, err = get(at.gateway, header); err != nil {
		return nil, err
	}
	for name, into := range map[string]*answer{
		l402.HeaderMacaroon:   &did.Macaroon,
		l402.HeaderMacaroonMD: &did.GrpcMetadataMacaroon,
	} {
		if *into, err = get(at.gateway, http.Header{name: {metadata["macaroon"]}}); err != nil {
			return nil, err
		}
	}
	return did, nil
}

// The token and the invoice of the first line that is a challenge.
func read(header http.Header) (*macaroon.Macaroon, string, error) {
	for _, line := range header.Values(l402.AuthHeader) {
		found := challenge.FindStringSubmatch(line)
		if found == nil {
			continue
		}
		raw, err := base64.StdEncoding.DecodeString(found[2])
		if err != nil {
			return nil, "", err
		}
		var token macaroon.Macaroon
		return &token, found[3], token.UnmarshalBinary(raw)
	}
	return nil, "", fmt.Errorf("no challenge in %q", header)
}

// The hash that token and invoice both name.
func agreedHash(token *macaroon.Macaroon, invoice string, lnd *lndclient.LndServices) (lntypes.Hash, error) {
	identifier, err := l402.DecodeIdentifier(bytes.NewReader(token.Id()))
	if err != nil {
		return lntypes.Hash{}, err
	}
	decoded, err := zpay32.Decode(invoice, lnd.ChainParams)
	if err != nil {
		return lntypes.Hash{}, err
	}
	if identifier.PaymentHash != *decoded.PaymentHash {
		return lntypes.Hash{}, errors.New("the invoice pays for another token")
	}
	return identifier.PaymentHash, nil
}

func get(url string, header http.Header) (answer, error) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return answer{}, err
	}
	request.Header = header
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return answer{Status: response.StatusCode, Body: string(body)}, err
}
