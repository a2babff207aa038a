// Buys from a gateway with the L402 package of aperture, which loop and pool have inside, paying with an lnd.
//
//	aperture grpc -gateway ADDR [-ca FILE] -store DIR LND
//	aperture http -gateway URL LND
//
// where LND is -lnd ADDR -lnd-cert FILE -lnd-macaroon FILE. Prints what came of it as one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/btcsuite/btcd/btcutil"
	"github.com/lightninglabs/lndclient"
)

const (
	// What everything that happens here may take.
	patience = 2 * time.Minute

	// What loop and pool pay at most, in satoshi: for the token, and for its way.
	maxCost btcutil.Amount = 1000
	maxFee  btcutil.Amount = 10
)

// Where everything is.
type places struct {
	gateway, ca, store string
	lnd                lndclient.LndServicesConfig
}

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("say grpc or http"))
	}
	commands := map[string]func(context.Context, *places, *lndclient.LndServices) (any, error){
		"grpc": overGRPC,
		"http": overHTTP,
	}
	command, known := commands[os.Args[1]]
	if !known {
		fail(fmt.Errorf("there is no %q: say grpc or http", os.Args[1]))
	}
	at := places{lnd: lndclient.LndServicesConfig{Network: lndclient.NetworkRegtest}}
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&at.gateway, "gateway", "", "where the gateway is")
	flags.StringVar(&at.ca, "ca", "", "who vouches for the gateway; in clear text without")
	flags.StringVar(&at.store, "store", "", "where the token is kept")
	flags.StringVar(&at.lnd.LndAddress, "lnd", "", "where lnd is")
	flags.StringVar(&at.lnd.TLSPath, "lnd-cert", "", "its certificate")
	flags.StringVar(&at.lnd.CustomMacaroonPath, "lnd-macaroon", "", "its macaroon")
	_ = flags.Parse(os.Args[2:])

	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	at.lnd.CallerCtx = ctx
	lnd, err := lndclient.NewLndServices(&at.lnd)
	if err != nil {
		fail(fmt.Errorf("lnd: %w", err))
	}
	outcome, err := command(ctx, &at, &lnd.LndServices)
	if err != nil {
		fail(err)
	}
	lnd.Close()
	if err := json.NewEncoder(os.Stdout).Encode(outcome); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
